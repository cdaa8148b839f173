"""The run's configuration: one YAML file, checked in full before any work starts.

Every section is frozen, keyword-only and refuses unknown keys. ``load_config`` turns what pydantic finds wrong into one
message a line, with the nearest valid key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from probekd.errors import ConfigError

Layout = Literal["listed", "branched"]
Position = Literal["answer", "option_end", "option_mean"]
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
Family = Literal["logistic", "ridge", "mass_mean", "mlp", "low_rank"]
Dtype = Literal["float32", "bfloat16"]
Likelihood = Literal["sum", "per token", "per byte"]
KindName = Literal["head", "label_token", "option_likelihood", "static", "cut"]
DivergenceName = Literal["forward_kl", "reverse_kl", "jensen_shannon"]
HiddenLossName = Literal["cosine", "mse"]
Tracker = Literal["trackio", "wandb", "mlflow", "tensorboard"]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd: as many depths above the middle one as below")
    return value


class Section(BaseModel):
    """A frozen part of a config that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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


class TeacherConfig(Section):
    """The frozen model that is read."""

    model: str
    """A local Transformers directory, a Hub id, or a GGUF file of a Llama-family model."""
    revision: str | None = None
    """Hub revision; a commit hash makes the run repeatable."""
    dtype: Dtype = "float32"
    """Compute type. float16 is not offered: it overflows on Qwen2 and Gemma-3 (transformers #33317, #39972)."""
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
    """Families of probes to try; docs/probes.md says which won where."""
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
    """What the student in ``student/`` is trained on."""
    baselines: tuple[Method, ...] = ("labels", "logit-kd")
    """Further students, trained on the same labels (and pool, for KD) and saved in ``baselines/``."""
    epochs: float = Field(default=4, ge=0)
    """Passes over labelled rows and pool, for the KD methods; 0 leaves a ``cut`` student as the probe made it."""
    label_epochs: float = Field(default=15, gt=0)
    """Passes over the labelled rows, for ``labels``: it sees fewer rows, so it gets more passes."""
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
    """Parts in which each process computes its rows of a step, to save memory; the step stays the same."""
    gradient_checkpointing: bool = False
    """Compute activations anew in the backward pass, to save memory."""
    bf16: bool = False
    """Compute in bfloat16 (weights, optimizer and loss stay in float32)."""
    checkpoint_seconds: float = Field(default=60, ge=0)
    """Time between checkpoints, from which a training that was killed goes on to the same weights."""
    report_to: tuple[Tracker, ...] = ()
    """Experiment trackers that losses are sent to."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Weight of the gold label's cross-entropy on labelled rows in the KD methods; pool rows have none."""
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


class EvaluateConfig(Section):
    """What is measured at the end."""

    splits: tuple[str, ...] = ("validation", "test")
    """Splits to predict; those the task does not have are passed over, but at least one must exist."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples of the intervals of differences."""


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
    seed: int = 0
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


SectionT = TypeVar("SectionT", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; raises ConfigError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``values`` with each ``a.b=c`` set; c is read as YAML, so numbers, lists and null work."""
    result: dict[str, Any] = json.loads(json.dumps(values, default=str))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: expected KEY=VALUE, such as --set task.labels=100")
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            elif isinstance(child, str) and parent in ("task", "teacher", "student"):
                child = node[parent] = {"name" if parent == "task" else "model": child}
            if not isinstance(child, dict):
                raise ConfigError(f"--set {override}: {parent} is a single value, it has no key {last!r}")
            node = child
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    return result


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the keys allowed beside the one at ``location``."""
    for part in location[:-1]:
        if isinstance(part, int):  # which of several sections
            continue
        field = model.model_fields.get(part)
        nested = _sections_in(field.annotation) if field else []
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections that a type is made of, such as X of ``X | None`` or of ``tuple[Annotated[X, ...], ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]


def validate(model: type[SectionT], values: Mapping[str, Any], source: str) -> SectionT:
    """Build ``model`` from ``values``; raises ConfigError with one line for each problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                known = _fields_at(model, problem["loc"])
                near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                lines.append(f"{source}: unknown key {key!r}; {hint}")
            elif problem["type"] == "missing":
                lines.append(f"{source}: the key {key!r} is missing")
            else:
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{source}: {key}: {message} (found {problem['input']!r})")
        raise ConfigError("\n".join(lines)) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML file, apply ``--set`` overrides, and check all of it.

    Raises:
        ConfigError: with the file, the key, and for an unknown key the nearest right one.
    """
    values = apply_overrides(read_yaml(path), overrides)
    values.setdefault("name", path.stem)
    return validate(RunConfig, values, str(path))


def dump_config(config: Section) -> str:
    """The config as YAML with every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every leaf where two dumped configs differ."""
    lines: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += config_differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines
