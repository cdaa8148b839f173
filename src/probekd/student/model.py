"""Student: a trained model with its tokenizer, as read from a student directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from probekd.config import KindName, Likelihood, PromptConfig, StudentConfig
from probekd.errors import ModelError, StoreError
from probekd.files import read_json, write_json
from probekd.prompts import shows_subject
from probekd.student.calibration import StudentCalibration
from probekd.student.history import Epoch
from probekd.student.kinds import StudentKind, kind_named
from probekd.student.logits import row_logits
from probekd.targets import softmax
from probekd.tasks.base import Example, Kind, Task

INFO_FILE = "probekd.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StudentInfo:
    """What ``probekd.json`` records.

    Attributes:
        kind: ``multiple_choice`` or ``classification``.
        student_kind: How it answers (``student.kind``); students from before there were kinds have a ``head``.
        likelihood: ``option_likelihood``: what of it is compared.
        prompt: How rows are shown to a decoder that answers in words; keys that are not at their default.
        worked_examples: Rows that its prompts show.
        labels: The label set (classification), else empty.
        max_length: Tokens a text; longer ones are cut.
        method: What it was trained on.
        base_model: The checkpoint that it started from.
        task: Name of the task.
        num_labels_used: Labelled training rows.
        num_pool_rows: Unlabelled training rows.
        num_cut_rows: Training rows with a text that was cut at ``max_length``.
        training_loss: Mean over all training steps.
        seed: Seed of the head, the order of rows and dropout.
        versions: Versions of probekd, torch and transformers.
        calibration: Its temperature and how it was found; None = there was nothing to fit it on.
        history: What each epoch of its training came to.
        choice: The same of the training that held labelled rows out to find how many epochs to take; empty = none did.
        base_licence: Licence of the checkpoint, where its card says so.
        format_version: Of this file.
    """

    kind: Kind
    labels: tuple[str, ...]
    max_length: int
    method: str
    base_model: str
    task: str
    num_labels_used: int
    num_pool_rows: int
    num_cut_rows: int
    training_loss: float
    seed: int
    versions: Mapping[str, str]
    student_kind: KindName = "head"
    likelihood: Likelihood = "sum"
    prompt: PromptConfig = field(default_factory=PromptConfig)
    worked_examples: tuple[Example, ...] = ()
    calibration: StudentCalibration | None = None
    history: tuple[Epoch, ...] = ()
    choice: tuple[Epoch, ...] = ()
    base_licence: str | None = None
    format_version: int = FORMAT_VERSION

    @property
    def temperature(self) -> float:
        """What the network's logits are still to be divided by."""
        return self.calibration.temperature if self.calibration and not self.calibration.folded else 1.0

    @property
    def sharpness(self) -> float:
        """What the network's logits are to be multiplied by to be those that training left."""
        return self.calibration.temperature if self.calibration and self.calibration.folded else 1.0

    @property
    def shows_subject(self) -> bool:
        """Whether the student reads a row's subject."""
        reads_prompt = self.student_kind not in ("head", "static")
        return reads_prompt and shows_subject(self.prompt, self.worked_examples)

    def save(self, directory: Path) -> None:
        """Write ``probekd.json``."""
        write_json(directory / INFO_FILE, {**asdict(self), "prompt": self.prompt.model_dump(exclude_defaults=True)})

    @property
    def known_task(self) -> Task:
        """What a student knows of its task: no rows but the worked examples."""
        splits = {self.prompt.shots_from: self.worked_examples} if self.worked_examples else {}
        return Task(name=self.task, kind=self.kind, splits=splits, labels=self.labels, prompt=self.prompt)

    def loading(self, directory: Path, *, trust_remote_code: bool = False) -> StudentConfig:
        """What a kind is to be told to load the student from its directory."""
        config = StudentConfig(
            model=str(directory),
            kind=self.student_kind,
            likelihood=self.likelihood,
            trust_remote_code=trust_remote_code,
        )
        return config.model_copy(update={"max_length": self.max_length})

    @classmethod
    def load(cls, directory: Path) -> StudentInfo:
        """Read ``probekd.json``.

        Raises:
            ModelError: the directory has none.
            StoreError: it is damaged or of another format version.
        """
        path = directory / INFO_FILE
        if not path.is_file():
            raise ModelError(f"{directory}: not a student, it has no {INFO_FILE}; give one that probekd trained")
        values = read_json(path)
        version = values.get("format_version") if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            known = f"this probekd reads {FORMAT_VERSION}"
            raise StoreError(f"{path}: format version {version}, but {known}; train the student again")
        try:
            return cls(**{**values, **_typed(values)})
        except (KeyError, TypeError, ValidationError) as error:
            raise StoreError(f"{path}: damaged ({error}); train the student again") from None


def _typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``probekd.json`` that JSON holds in other types; students of before lack the later ones."""
    calibration = values.get("calibration")
    examples = values.get("worked_examples", ())
    return {
        "labels": tuple(values["labels"]),
        "prompt": PromptConfig(**values.get("prompt", {})),
        "worked_examples": tuple(Example(**{**e, "options": tuple(e["options"])}) for e in examples),
        "calibration": StudentCalibration(**calibration) if calibration else None,
        **{name: tuple(Epoch(**epoch) for epoch in values.get(name, ())) for name in ("history", "choice")},
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """A trained student.

    Attributes:
        directory: A plain Transformers directory. When the student was trained without an output directory this is a
            temporary one, deleted when the Student is.
        info: What is known of its training.
        model: Its network, in evaluation mode, on cuda when present; its tokenizer; how they answer.
    """

    directory: Path
    info: StudentInfo
    model: StudentKind = field(repr=False)
    _temporary: TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def kind(self) -> Kind:
        """``multiple_choice`` or ``classification``."""
        return self.info.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """The label set (classification), else empty."""
        return self.info.labels

    @property
    def network(self) -> Any:
        """The Transformers model."""
        return self.model.network

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.model.tokenizer

    @classmethod
    def load(
        cls, directory: str | Path, *, trust_remote_code: bool = False, temporary: TemporaryDirectory[str] | None = None
    ) -> Student:
        """Read a student directory.

        Args:
            directory: What ``distill`` or a run wrote.
            trust_remote_code: Run Python code that ships with the checkpoint.
            temporary: Owner of ``directory``, when it is to live no longer than the Student.

        Raises:
            ModelError: not a student directory, or weights that cannot be loaded.
            StoreError: a damaged one, or one of another format version.
        """
        directory = Path(directory)
        info = StudentInfo.load(directory)
        config = info.loading(directory, trust_remote_code=trust_remote_code)
        model = kind_named(info.student_kind).load(directory, info.known_task, config)
        model.network.eval().to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(directory=directory, info=info, model=model, _temporary=temporary)

    def predict_proba(self, examples: Sequence[Example], *, batch_size: int = 64) -> list[np.ndarray]:
        """Calibrated distribution over each row's options: float64 of shape (k_i,) that sums to 1, in their order.

        Args:
            examples: Rows; their answers are not looked at.
            batch_size: Token sequences a batch; a row of multiple choice is one for each of its options.

        Raises:
            DataError: a row that does not fit ``max_length`` and cannot be cut.
        """
        return [softmax(row / self.info.temperature) for row in self._logits(examples, batch_size)]

    def logits(self, examples: Sequence[Example], *, batch_size: int = 64) -> list[np.ndarray]:
        """Logits of each row before calibration: float32 of shape (k_i,), in the order of ``examples``.

        See ``predict_proba``.
        """
        return [row * np.float32(self.info.sharpness) for row in self._logits(examples, batch_size)]

    def _logits(self, examples: Sequence[Example], batch_size: int) -> list[np.ndarray]:
        return row_logits(self.model, self.model.encode(examples), batch_size=batch_size)
