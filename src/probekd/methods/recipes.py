"""The methods by name: what each one learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from probekd.config import Method
from probekd.methods import single
from probekd.methods.blend import MEMBERS, blend
from probekd.methods.teacher import TEACHER_VIEWS
from probekd.methods.views import Evidence, ViewName
from probekd.probes.outputs import Care
from probekd.targets import SoftTargets


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method.

    Attributes:
        make: Its targets from the evidence.
        views: The views that ``make`` looks at.
        pool: Whether it can learn from unlabelled rows, or cannot do without.
        gold: Whether gold labels are all that is told, so that there is nothing to mix them with.
        hidden: Whether the student also learns to match the teacher's hidden states.
        says: What its targets are, for people; ``{teacher}`` stands for the model's name.
    """

    make: Callable[[Evidence], SoftTargets]
    says: str
    views: tuple[ViewName, ...] = ()
    pool: Literal["never", "optional", "needed"] = "optional"
    gold: bool = False
    hidden: bool = False

    @property
    def teacher(self) -> bool:
        """Whether the teacher takes part: its states are matched, or the targets are made of what is read in it."""
        return self.hidden or any(view in TEACHER_VIEWS for view in self.views)


_PROBE = "what a probe read in the hidden states of {teacher}"
_WORDS = "what {teacher} said by its output tokens"
_GOLD = "the gold answers"

RECIPES: Mapping[Method, Recipe] = {
    "labels": Recipe(make=single.gold, says=_GOLD, pool="never", gold=True),
    "label-smoothing": Recipe(make=single.smoothed, says=f"{_GOLD}, smoothed", pool="never"),
    "logit-kd": Recipe(make=single.of_view("output_raw"), says=f"{_WORDS}, as it is", views=("output_raw",)),
    "calibrated-logit-kd": Recipe(
        make=single.of_view("output_calibrated"),
        says=f"{_WORDS}, calibrated on the labelled rows",
        views=("output_calibrated",),
    ),
    "debiased-logit-kd": Recipe(
        make=single.of_view("output_debiased"),
        says=f"{_WORDS}, without its liking for some answers whatever is asked",
        views=("output_debiased",),
    ),
    "hidden-kd": Recipe(make=single.gold, says=_GOLD, gold=True, hidden=True),
    "probe-kd": Recipe(make=single.of_view("probe"), says=_PROBE, views=("probe",)),
    "probe-kd-in-sample": Recipe(
        make=single.in_sample,
        says=f"{_PROBE}, having been fitted on these very rows (an ablation)",
        views=("probe_in_sample",),
    ),
    "probe-kd-shuffled": Recipe(
        make=single.of_view("probe_shuffled"),
        says=f"{_PROBE}, having been fitted on shuffled answers (a control)",
        views=("probe_shuffled",),
    ),
    "self-train": Recipe(
        make=single.self_train,
        says=f"{_GOLD}, and what a student of these said of the rest",
        views=("student",),
        pool="needed",
    ),
    "blend-kd": Recipe(
        make=blend,
        says=f"{_PROBE}, what it said by its output tokens and a small model of the labels, blended",
        views=MEMBERS,
    ),
}


def has_teacher(method: str) -> bool:
    """Whether a teacher takes part in a method; of a name that is not ours nobody knows that none does."""
    recipe = RECIPES.get(method)  # type: ignore[call-overload]
    return recipe is None or recipe.teacher


def views_of(methods: Iterable[Method]) -> tuple[ViewName, ...]:
    """Every view that some methods need, each once."""
    return tuple(dict.fromkeys(view for method in methods for view in RECIPES[method].views))


CARES: Mapping[ViewName, Care] = {
    "output_raw": "raw",
    "output_debiased": "debiased",
    "output_calibrated": "calibrated",
}


def cares_of(views: Iterable[ViewName]) -> tuple[Care, ...]:
    """The cares of the output readouts among some views."""
    return tuple(CARES[view] for view in views if view in CARES)
