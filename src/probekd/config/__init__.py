"""The run's configuration: one YAML file, checked in full before any work starts.

Every section is frozen, keyword-only and refuses unknown keys. ``load_config`` turns what pydantic finds wrong into one
message a line, with the nearest valid key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from probekd.config.section import (
    Section,
    SectionT,
    apply_overrides,
    config_differences,
    dump_config,
    read_yaml,
    validate,
)
from probekd.config.student import (
    SAME_STUDENT,
    DivergenceName,
    EarlyStoppingConfig,
    HiddenConfig,
    HiddenLossName,
    KindName,
    Likelihood,
    LoraConfig,
    Method,
    StudentConfig,
    Tracker,
)

__all__ = [
    "SAME_STUDENT",
    "DivergenceName",
    "Dtype",
    "EarlyStoppingConfig",
    "EvaluateConfig",
    "Family",
    "HiddenConfig",
    "HiddenLossName",
    "KindName",
    "Layout",
    "Likelihood",
    "LoraConfig",
    "Method",
    "Position",
    "ProbeConfig",
    "PromptConfig",
    "RunConfig",
    "Section",
    "SectionT",
    "Seed",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "Tracker",
    "apply_overrides",
    "config_differences",
    "dump_config",
    "load_config",
    "model_from_name",
    "native_dtype",
    "read_yaml",
    "task_from_name",
    "validate",
]

Layout = Literal["listed", "branched"]
Position = Literal["answer", "option_end", "option_mean"]
Family = Literal["logistic", "ridge", "mass_mean", "mlp", "low_rank"]
Dtype = Literal["float32", "bfloat16"]


Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd: as many depths above the middle one as below")
    return value


class PromptConfig(Section):
    """How a row is shown to the teacher."""

    instruction: str | None = None
    """Jinja2 text said once, before the worked examples (sees labels, subject); None = the kind's default."""
    template: str | None = None
    """Jinja2 template of the ``listed`` layout (sees question, options, letters, subject); None = the kind's default."""
    branched_template: str | None = None
    """Jinja2 template of the question prefix that each option continues; None = the kind's default."""
    layouts: tuple[Layout, ...] | None = None
    """Layouts to read; None = listed and branched for multiple_choice, listed for classification."""
    shots: int = Field(default=0, ge=0)
    """Worked examples before each question, from ``shots_from`` (same subject where rows have one)."""
    shots_from: str = "dev"
    """Split that the worked examples come from; it takes part in nothing else."""
    permutations: int = Field(default=1, ge=1)
    """Option orders in which a ``listed`` multiple-choice row is read, the row's own first; 1 = that one alone.

    Label logits and option states are un-permuted and averaged over the orders, which takes the teacher's liking for a
    place or a letter out of them; every order costs a pass. States at ``answer`` are kept for each order, and probes do
    not read them then.
    """
    chat: bool = False
    """Wrap the prompt in the tokenizer's chat template."""
    system: str | None = None
    """System message, with ``chat`` only."""


class TaskConfig(Section):
    """Which rows take part."""

    name: str
    """A built-in task (``probekd tasks``) or the path of a task file."""
    data_dir: Path | None = None
    """Directory of the built-in benchmarks' JSONL files; default: the variable PROBEKD_DATA, else the Hub."""
    subjects: tuple[str, ...] | None = None
    """MMLU only: the subjects to keep; None = all."""
    labels: int | None = Field(default=None, ge=1)
    """Label budget: training rows whose answer is used; None = all of them."""
    pool: int | Literal["all"] = Field(default="all")
    """Unlabelled rows: the split ``unlabelled`` and then training rows beyond the budget, with their answers removed."""
    limit: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """At most this many rows of a split, such as {test: 400}; chosen by hash, so the same rows every time."""
    on_overlap: Literal["drop", "error", "keep"] = "drop"
    """What to do with training and pool rows whose question recurs in validation or test."""


def native_dtype(device: str) -> Dtype:
    """The type that a device computes in at its best without overflow."""
    if device != "auto" and not device.startswith("cuda"):
        return "float32"
    import torch

    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


class TeacherConfig(Section):
    """The frozen model that is read."""

    model: str
    """A local Transformers directory, a Hub id, or a GGUF file of a Llama-family model."""
    revision: str | None = None
    """Hub revision; a commit hash makes the run repeatable."""
    dtype: Dtype = "float32"
    """Compute type; where none is given, bfloat16 on a GPU that computes in it, and float32 elsewhere. float16 is not
    offered: it overflows on Qwen2 and Gemma-3 (transformers #33317, #39972)."""
    device: str = "auto"
    """``auto`` (cuda when present, else cpu) or a torch device."""
    trust_remote_code: bool = False
    """Run Python code that ships with the checkpoint. Off unless asked for."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens a batch; None = what runs fastest, measured at the start. Halved when a batch does not fit into memory."""
    memory: Literal["auto", "whole", "streamed"] = "auto"
    """``whole`` holds every block, ``streamed`` one at a time; ``auto`` streams when the weights exceed the free memory."""
    device_map: str | None = None
    """Passed on to Transformers, such as ``auto`` to spread a model over several devices; excludes ``streamed``."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Load with bitsandbytes in 4 or 8 bits. Quantised states are those of another model, and kept apart."""
    on_long: Literal["error", "drop"] = "error"
    """A prompt longer than the model's context stops the run or drops the row; it is never cut."""
    max_length: int | None = Field(default=None, ge=1)
    """Context length to respect; None = the model's own."""

    @model_validator(mode="before")
    @classmethod
    def _native_dtype(cls, values: Any) -> Any:
        # Decided here, so that the run's config.yaml says it and another machine cannot go on in another type.
        if isinstance(values, dict) and "dtype" not in values:
            return {**values, "dtype": native_dtype(str(values.get("device", "auto")))}
        return values

    @model_validator(mode="after")
    def _streamed_alone(self) -> Self:
        placed = {"device_map": self.device_map, "quantization": self.quantization, "a GGUF file": self.is_gguf}
        others = [name for name, value in placed.items() if value]
        if self.memory == "streamed" and others:
            raise ValueError(
                f"memory: streamed reads blocks from safetensors by name, so it cannot be combined with {others[0]}"
            )
        return self

    @property
    def is_gguf(self) -> bool:
        """Whether the model is a GGUF file."""
        return self.model.endswith(".gguf")


class ProbeConfig(Section):
    """How the states are read."""

    positions: tuple[Position, ...] | None = None
    """Positions to try; None = every one that the task's kind and layouts have."""
    depths: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Depths to try; None = all, embeddings (0) to the last block."""
    families: tuple[Family, ...] = ("logistic",)
    """Families of probes to try; docs/probes-evidence.md says which won where."""
    l2: tuple[Annotated[float, Field(gt=0)], ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    """Strengths tried: the loss is mean cross-entropy + l2/2 * |w|^2 on standardised features."""
    windows: tuple[Annotated[int, Field(ge=1), AfterValidator(_odd)], ...] = (1, 5)
    """Numbers of neighbouring depths whose logits are averaged, odd; each depth by itself is always tried."""
    stack: bool = True
    """Try a weighted sum of the best readers of each layout and position; used where it wins out-of-fold."""
    folds: int = Field(default=5, ge=3)
    """Cross-fitting folds; the nested choice leaves two out at a time, so three are the least."""
    repeats: int = Field(default=1, ge=1)
    """Times that the rows are dealt into folds anew; predictions are averaged, which takes out the folds' own noise."""
    tolerance: float = Field(default=1e-5, gt=0)
    """A problem is solved when its gradient norm has fallen to this fraction of its start."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the gate's intervals."""


class EvaluateConfig(Section):
    """What is measured at the end."""

    splits: tuple[str, ...] = ("validation", "test")
    """Splits to predict; those the task does not have are passed over, but at least one must exist."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the intervals of differences."""

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if learned := [s for s in self.splits if s in ("train", "unlabelled", "dev")]:
            raise ValueError(
                f"splits: {learned[0]!r} is learned from or shown in prompts, and says nothing of rows to come; name splits "
                "that are held out"
            )
        return self


def task_from_name(value: Any) -> Any:
    """A task's section from its name alone."""
    return {"name": value} if isinstance(value, str) else value


def model_from_name(value: Any) -> Any:
    """A model's section from its name alone."""
    return {"model": value} if isinstance(value, str) else value


class RunConfig(Section):
    """One run: task, teacher, probe, student, evaluation."""

    name: str | None = None
    """Name of the run directory under ``runs_dir``; None = the config file's stem."""
    runs_dir: Path = Path("runs")
    seed: Seed = 0
    """Seeds the label subset, folds, bootstrap and student."""
    task: Annotated[TaskConfig, BeforeValidator(task_from_name)]
    prompt: PromptConfig | None = None
    """Changes to the task's own prompt: keys that are not at their default."""
    teacher: Annotated[TeacherConfig, BeforeValidator(model_from_name)]
    probe: ProbeConfig = ProbeConfig()
    student: Annotated[StudentConfig, BeforeValidator(model_from_name)]
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _cut_from_the_teacher(self) -> Self:
        student, teacher = self.student, self.teacher
        if student.kind != "cut":
            return self
        if (student.model, student.revision) != (teacher.model, teacher.revision):
            raise ValueError("student: a student of kind cut is made of the teacher's blocks; give both the same model")
        if teacher.quantization or teacher.is_gguf:
            raise ValueError("student: no student of kind cut is made of a quantised teacher; take another kind")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply ``--set`` overrides, and check all of it.

    Raises:
        ConfigError: with the file, the key, and for an unknown key the nearest right one.
    """
    values = apply_overrides(read_yaml(path), overrides)
    values.setdefault("name", path.stem)
    return validate(RunConfig, values, str(path))
