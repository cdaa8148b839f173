"""The student's part of a config: which model, which kind of student, what it learns from and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from probekd.config.section import Section

Method = Literal[
    "labels",
    "label-smoothing",
    "logit-kd",
    "calibrated-logit-kd",
    "debiased-logit-kd",
    "hidden-kd",
    "probe-kd",
    "probe-kd-in-sample",
    "probe-kd-shuffled",
    "self-train",
    "blend-kd",
]
Likelihood = Literal["sum", "per token", "per byte"]
KindName = Literal["head", "label_token", "option_likelihood", "static", "cut"]
DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
HiddenLossName = Literal["cosine", "mse"]
Tracker = Literal["trackio", "wandb", "mlflow", "tensorboard"]


class LoraConfig(Section):
    """Training small factors beside a frozen network's matrices, merged into them in the end; needs the extra peft."""

    rank: int = Field(default=16, ge=1)
    """Rank of each factor."""
    alpha: float | None = Field(default=None, gt=0)
    """The factors' product counts alpha / rank; None = 2 * rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the factors' input."""
    targets: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of the linear modules that get factors, such as [q_proj, v_proj]; None = peft's own for the architecture."""


class EarlyStoppingConfig(Section):
    """When a student has learnt enough: by its log-loss on rows that it is not trained on, looked at once an epoch.

    These are the labelled rows of the split ``validation``. A task without one holds out a fold of its labelled training
    rows, finds the number of epochs on it, and then trains on all rows for as many.
    """

    patience: int = Field(default=5, ge=1)
    """Epochs without a lower log-loss after which training ends; the best epoch's weights are kept."""
    folds: int = Field(default=5, ge=2)
    """One in so many labelled rows is held out, where there is no validation split."""


class HiddenConfig(Section):
    """How a student's hidden states are matched to the teacher's (``hidden-kd``)."""

    loss: HiddenLossName = "cosine"
    """Distance of the student's projected state from the teacher's standardised one."""
    weight: float = Field(default=1.0, gt=0)
    """Of this loss, beside what the row learns from its label and target."""


class StudentConfig(Section):
    """The small model that is trained."""

    model: str
    """A local Transformers directory or a Hub id."""
    revision: str | None = None
    """Hub revision."""
    kind: KindName = "head"
    """How the student answers: with a classification or multiple-choice ``head``; or, a decoder, in words, at the
    ``label_token`` of the listed prompt or by ``option_likelihood``; or, ``cut``, by the teacher's own first blocks with
    the probe as their head. docs/students.md says which to take."""
    likelihood: Likelihood = "sum"
    """``option_likelihood`` only: what of an option's log-likelihood is compared, all of it or its mean."""
    depth: int | None = Field(default=None, ge=1)
    """``cut`` only: how many of the teacher's blocks; None = as many as the probe's best reader of one depth reads."""
    lora: LoraConfig | None = None
    """Train low-rank factors instead of every weight, and head modules whole; None = every weight."""
    method: Method = "probe-kd"
    """What the student in ``student/`` is trained on; docs/study.md says what each method is."""
    baselines: tuple[Method, ...] = ("labels", "calibrated-logit-kd")
    """Further students, trained on the same labels (and pool, for KD) and saved in ``baselines/``."""
    epochs: float = Field(default=4, ge=0)
    """Passes over labelled rows and pool, for the KD methods; 0 leaves a ``cut`` student as the probe made it."""
    label_epochs: float = Field(default=15, gt=0)
    """Passes where there are labelled rows alone: a student that sees fewer rows gets more passes."""
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    """Null trains for exactly ``epochs`` or ``label_epochs``."""
    learning_rate: float = Field(default=1e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """What the learning rate does after the warm-up."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=16, ge=1)
    """Rows a step, over all processes; in multiple choice a row is all of its options."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Parts in which each process computes its rows of a step, to save memory; the step stays the same, but for the masks
    of dropout, which each part draws anew."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass, to save memory."""
    bf16: bool = False
    """Compute in bfloat16 (weights, optimizer and loss stay in float32)."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Time between checkpoints, from which a training that was killed goes on to the same weights."""
    report_to: tuple[Tracker, ...] = ()
    """Experiment trackers that losses are sent to; docs/students.md says where their files are."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the gold label's cross-entropy on labelled rows in the KD methods and ``label-smoothing``; pool rows have
    none."""
    divergence: DivergenceName = "forward_kl"
    """Of the student from its target, in the KD methods."""
    temperature: float = Field(default=1.0, gt=0)
    """Softens targets and student alike; the divergence is scaled by its square."""
    confidence_weights: bool = False
    """Weigh a row's divergence by how sure its target is (mean one over all rows that are trained on)."""
    hidden: HiddenConfig = HiddenConfig()
    """Used where a student learns from the teacher's states."""
    max_length: int = Field(default=256, ge=8)
    """Student tokens a row or option; longer texts are cut, and the count of cut rows is reported."""
    trust_remote_code: bool = False
    """Run Python code that ships with the checkpoint. Off unless asked for."""

    @model_validator(mode="after")
    def _taught_by_labels(self) -> Self:
        methods = {self.method, *self.baselines}
        if "self-train" in methods and "labels" not in methods:
            raise ValueError("baselines: self-train learns from the student of labels; add labels to them")
        return self

    @model_validator(mode="after")
    def _static_trains_no_network(self) -> Self:
        if self.kind != "static":
            return self
        if self.lora is not None:
            raise ValueError(
                "lora: a student of kind static trains no network that factors could stand beside; leave it out"
            )
        if self.gradient_checkpointing:
            raise ValueError(
                "gradient_checkpointing: a student of kind static trains no network whose activations take memory; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _cut_alone(self) -> Self:
        if self.kind != "cut":
            if self.depth is not None:
                raise ValueError("depth: only a student of kind cut has blocks to be counted")
            if self.epochs == 0:
                raise ValueError("epochs: 0 leaves a student untrained, and only one of kind cut knows anything then")
        elif self.epochs == 0:
            untrained = {self.method, *self.baselines} - {"probe-kd", "labels"}
            if untrained:
                raise ValueError(
                    f"epochs: 0 trains no student of the method {sorted(untrained)[0]}, whose head starts at random; "
                    "leave it out of method and baselines"
                )
        return self


# Options of a student that change nothing in it.
SAME_STUDENT = {"checkpoint_seconds", "report_to"}
