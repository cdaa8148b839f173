"""A student that answers in words through lm-evaluation-harness, on the very rows that our own scorer reads.

lm-eval loads the student's directory by itself, with plain Transformers, and tokenises the prompts by itself. What it
would read is compared with what the student was trained to read, token by token, before anything is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

from probekd.errors import ConfigError, DataError, ModelError
from probekd.progress import Progress, Silent, working
from probekd.student.inputs import Encoded
from probekd.student.kinds.decoder import Decoder
from probekd.student.kinds.label_token import LabelToken
from probekd.student.model import Student
from probekd.tasks.base import Example
from probekd.teacher.load import quiet_transformers

TASK = "probekd"
METRICS = {"sum": "acc", "per byte": "acc_bytes"}
_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """How a student fares in lm-eval and with us.

    Attributes:
        n: Labelled rows.
        metric: lm-eval's name of what it reports.
        harness: What it reports.
        accuracy: Our scorer's.
        differ: Ids of the rows for which the two pick different options.
    """

    n: int
    metric: str
    harness: float
    accuracy: float
    differ: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What lm-eval is asked about one option: the likelihood of ``text`` after ``context``.

    Attributes:
        context: The prompt.
        text: What says the option.
        read: Tokens that the student reads before it says it.
        said: Tokens by which it says it.
    """

    context: str
    text: str
    read: tuple[int, ...]
    said: tuple[int, ...]


def harness_score(
    student: Student,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> HarnessScore:
    """Run labelled rows through lm-eval and through ``Student.predict_proba``.

    Args:
        student: Of kind ``label_token`` or ``option_likelihood``.
        examples: Rows; those without an answer are left out.
        batch_size: Token sequences a batch.
        trust_remote_code: Run Python code that ships with the checkpoint, which lm-eval loads by itself.
        progress: Told of the options that lm-eval has scored.

    Raises:
        ConfigError: lm-eval is not installed, or has no metric like the student's.
        ModelError: a student that does not answer in words, or that lm-eval would ask something else.
        DataError: no row has an answer.
    """
    rows = [e for e in examples if e.answer is not None]
    if not rows:
        raise DataError(f"task {student.info.task}: no row has an answer, so nothing can be scored")
    metric = _metric(student)
    model = student.model
    assert isinstance(model, Decoder)
    asked = [requests_of(model, row, encoded) for row, encoded in zip(rows, model.encode(rows), strict=True)]
    with _quiet():
        reader = _reader(student, asked, batch_size, trust_remote_code, progress or Silent())
        found = _lm_eval().evaluator.evaluate(reader, {"tasks": {TASK: _task(rows, asked, metric)}}, bootstrap_iters=0)
    scale = [[len(r.text.encode()) if metric == "acc_bytes" else 1 for r in options] for options in asked]
    picks = _picks(found["samples"][TASK], scale)
    mine = [int(p.argmax()) for p in student.predict_proba(rows)]
    return HarnessScore(
        n=len(rows),
        metric=metric,
        harness=float(found["results"][TASK][f"{metric},none"]),
        accuracy=float(np.mean([pick == row.answer for pick, row in zip(mine, rows, strict=True)])),
        differ=tuple(row.id for row, a, b in zip(rows, mine, picks, strict=True) if a != b),
    )


def requests_of(model: Decoder, example: Example, encoded: Encoded) -> list[Request]:
    """What lm-eval is to be asked about each option of a row."""
    prompts = model.prompts
    if isinstance(model, LabelToken):
        context, texts = prompts.context(example, "listed"), [text for _, text in prompts.labels(example)]
    else:
        context, texts = prompts.context(example, "branched"), [prompts.joiner + option for option in example.options]
    requests = []
    for option, text in enumerate(texts):
        said = [s for s in encoded.said if s.option == option]
        read = encoded.sequences[said[0].sequence]["input_ids"][: said[0].at + 1]
        requests.append(Request(context=context, text=text, read=tuple(read), said=tuple(s.token for s in said)))
    return requests


def same_tokens(request: Request, context: Sequence[int], continuation: Sequence[int], *, exactly: bool) -> bool:
    """Whether lm-eval asks what the student answers.

    lm-eval moves blanks at the end of a prompt into the answer. They are the same for every option, so they change no
    choice, unless the likelihood is divided by a length (``exactly``).
    """
    whole = (*context, *continuation) == (*request.read, *request.said)
    return whole and (len(context) == len(request.read) or (len(context) < len(request.read) and not exactly))


def _metric(student: Student) -> str:
    kind, likelihood = student.info.student_kind, student.info.likelihood
    if not isinstance(student.model, Decoder):
        raise ModelError(
            f"{student.directory}: a student of kind {kind!r} does not answer in words, so lm-eval cannot ask it; it "
            "takes student.kind: label_token or option_likelihood"
        )
    if isinstance(student.model, LabelToken):
        return METRICS["sum"]
    if likelihood not in METRICS:
        raise ConfigError(
            f"{student.directory}: lm-eval has no metric like student.likelihood: {likelihood}; it takes sum or per byte"
        )
    return METRICS[likelihood]


def _lm_eval() -> Any:
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface
    except ImportError:
        raise ConfigError("--harness needs the package lm-eval: pip install 'probekd[lm-eval]'") from None
    return lm_eval


def _task(rows: Sequence[Example], asked: Sequence[Sequence[Request]], metric: str) -> Any:
    """The rows as a multiple-choice task of lm-eval, in memory."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    docs = [
        {"id": row.id, "context": options[0].context, "choices": [r.text for r in options], "answer": row.answer}
        for row, options in zip(rows, asked, strict=True)
    ]
    config = {
        "task": TASK,
        "custom_dataset": lambda: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: doc["context"],
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["answer"],
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
    }

    class Task(ConfigurableTask):  # type: ignore[misc]
        def build_all_requests(self, **options: Any) -> None:
            with redirect_stderr(StringIO()):  # its progress bar, over in no time, cannot be turned off
                super().build_all_requests(**options)

    return Task(config=config)


def _reader(
    student: Student,
    asked: Sequence[Sequence[Request]],
    batch_size: int,
    trust_remote_code: bool,
    progress: Progress,
) -> Any:
    """lm-eval's own reader of Transformers models, which checks what it is about to read."""
    base: Any = _lm_eval().models.huggingface.HFLM
    chat = student.info.prompt.chat
    by_text = {(r.context, r.text): r for options in asked for r in options}
    exactly = student.info.likelihood == "per byte"

    class Reader(base):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found

        def _loglikelihood_tokens(self, requests: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
            for text, context, continuation in requests:
                if not same_tokens(by_text[text], context, continuation, exactly=exactly):
                    raise ModelError(
                        f"{student.directory}: lm-eval would read other tokens than the student does, after the prompt "
                        f"that ends in {text[0][-40:]!r} and for the answer {text[1]!r}; its score would be of "
                        "something else"
                    )
            found: list[tuple[float, bool]] = []
            with working(progress, "lm-eval", len(requests), "options") as told:
                for start in range(0, len(requests), _AT_A_TIME):
                    some = requests[start : start + _AT_A_TIME]
                    found += super()._loglikelihood_tokens(some, **options)
                    told.advance(len(some))
            return found

    return Reader(
        pretrained=str(student.directory),
        dtype="float32",
        device=str(student.network.device),
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        # A chat template writes its own special tokens.
        add_bos_token=False if chat else None,
    )


def _picks(samples: Sequence[Any], scale: Sequence[Sequence[int]]) -> list[int]:
    """The option that lm-eval picks in each row: the first of the likeliest."""
    picks = [0] * len(samples)
    for sample in samples:
        row = sample["doc_id"]
        likelihoods = np.array([likelihood for likelihood, _ in sample["filtered_resps"]])
        picks[row] = int(np.argmax(likelihoods / np.array(scale[row])))
    return picks


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval says on its log what it is doing; we say it on ours."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet_transformers():
            yield
    finally:
        logging.disable(before)
