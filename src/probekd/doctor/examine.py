"""Examine a teacher: its prompts first, then every way of reading them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from probekd.config import TeacherConfig
from probekd.doctor.compare import agreement, cause, depth_errors, readout_errors
from probekd.doctor.modes import Plan, packed, padded, pads_left, prefixed, read_sheet
from probekd.doctor.prompts import Plain, check_bos, check_context, check_labels, check_padding, check_tokens, find_cut
from probekd.doctor.reference import Truth, read_reference
from probekd.doctor.report import Check, ModeResult, Report
from probekd.doctor.sample import Sheet, choose_rows, sheets_of, tokens_of, with_labels
from probekd.errors import ConfigError, ModelError, ProbeKDError
from probekd.progress import Progress, Silent, working
from probekd.prompts import PromptEncoder, layouts_of
from probekd.tasks.base import Task
from probekd.teacher.check import packable
from probekd.teacher.load import Teacher, load_teacher, load_tokenizer, resolve_model
from probekd.teacher.memory import free_memory, weight_bytes

# Relative to each state.
EXACT, BFLOAT16, GGUF = 1e-4, 1e-1, 1e-3
# Decisions that must be the reference's, whatever the errors; those of a model near chance are close calls.
DECISIONS = 0.8
FLOAT16_LARGEST = 65504
MODES = ("padded", "packed", "prefix", "streamed", "depth cut", "bfloat16", "GGUF")


def examine(
    teacher: str,
    task: Task,
    *,
    rows: int = 8,
    gguf: Path | None = None,
    sibling: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Compare what we read of a sample of rows with plain Transformers, one sequence at a time in float32.

    One model is in memory at a time, so a teacher that fits by itself can be examined.

    Args:
        teacher: A model directory, Hub id or GGUF file.
        task: Where the rows come from.
        rows: How many.
        gguf: A GGUF file of the teacher, when that is a directory.
        sibling: The safetensors directory of the teacher, when that is a GGUF file.
        trust_remote_code: Run Python code that ships with the checkpoint.
        progress: Told of the modes as they are done.

    Raises:
        ModelError: the teacher cannot be loaded, or not be held in memory.
        ConfigError: options that do not go together, or a template that cannot be used.
        DataError: rows that cannot be shown to the teacher.
    """
    config = TeacherConfig(model=teacher, memory="whole", dtype="float32", trust_remote_code=trust_remote_code)
    source = resolve_model(teacher)
    pair = _gguf_and_directory(source, gguf, sibling)
    # The first block alone tells whether the teacher can be loaded, and has its tokenizer with it.
    front = load_teacher(config, depth=1)
    _expect_room(source, front)
    encoder = PromptEncoder(front.tokenizer, task, encoder=front.encoder)
    checks, sheets = _prompts(encoder, rows, front.max_length)
    if not sheets:
        return Report(teacher=teacher, task=task.name, checks=checks, modes=())
    with working(progress or Silent(), "examining", 1 + len(MODES), "modes") as done:
        truths = read_reference(config, source, sheets, encoder=front.encoder)
        done.advance(1)
        exam = _Exam(config=config, source=source, encoder=encoder, sheets=sheets, truths=truths)
        modes = []
        for result in exam.modes(*pair):
            modes.append(result)
            done.advance(1)
    return Report(teacher=teacher, task=task.name, checks=(*checks, _range(truths)), modes=tuple(modes))


@dataclass(frozen=True, kw_only=True)
class _Exam:
    """What every mode is compared with.

    Attributes:
        config: The teacher as it is loaded by default, whole and in float32.
        source: Its directory or GGUF file.
        encoder: Made the prompts.
        sheets: The rows in each layout.
        truths: What the reference gives for each sheet.
    """

    config: TeacherConfig
    source: Path
    encoder: PromptEncoder
    sheets: tuple[Sheet, ...]
    truths: tuple[Truth, ...]

    def modes(self, gguf: Path | None, directory: Path | None) -> Generator[ModeResult, None, None]:
        """Every mode, in the order of ``MODES``."""
        depths, usual = yield from self._held()
        if self.source.suffix == ".gguf":
            yield _missing("streamed", "blocks are read from safetensors by name, which a GGUF file has not")
        else:
            yield self.compare("streamed", lambda: self._load(memory="streamed"), usual)
        yield self.compare("depth cut", lambda: load_teacher(self.config, depth=max(1, depths // 2)), usual)
        yield self.compare(
            "bfloat16", lambda: self._load(dtype="bfloat16"), usual, tolerance=BFLOAT16, note=self._rounding
        )
        yield self._gguf(gguf, directory, usual)

    def _held(self) -> Generator[ModeResult, None, tuple[int, Plan]]:
        """Modes of the teacher in memory, which is let go at the end; returns its depths, and the plan of a run."""
        whole = load_teacher(self.config)
        unpackable = next((why for s in self.sheets if (why := packable(whole, s.prompts))), "")
        yield self.compare("padded", lambda: whole, padded)
        for name, plan in (("packed", packed), ("prefix", prefixed)):
            yield _missing(name, unpackable) if unpackable else self.compare(name, lambda: whole, plan)
        return whole.depths, padded if unpackable else packed

    def compare(
        self,
        mode: str,
        load: Callable[[], Teacher],
        plan: Plan,
        *,
        tolerance: float = EXACT,
        note: Callable[[], str] = str,
    ) -> ModeResult:
        """Read the sheets in one mode; whatever goes wrong in it is a reason not to use it.

        Args:
            mode: Its name.
            load: Gives the teacher.
            plan: How the rows are computed.
            tolerance: Largest relative error that is rounding.
            note: What else is known when there is more of it.
        """
        try:
            teacher = load()
            depths = range(len(teacher.blocks) + 1)
            readings = [read_sheet(teacher, sheet, plan, depths) for sheet in self.sheets]
        except Exception as error:
            said = str(error) if isinstance(error, ProbeKDError) else f"{type(error).__name__}: {error}".splitlines()[0]
            return ModeResult(mode=mode, verdict="do not use", reason=said)
        counts = [agreement(s, r, t) for s, r, t in zip(self.sheets, readings, self.truths, strict=True)]
        result = ModeResult(
            mode=mode,
            verdict="use",
            rows=len(self.sheets[0].rows),
            tolerance=tolerance,
            by_depth=depth_errors(readings, self.truths),
            readouts=readout_errors(readings, self.truths),
            exact=teacher.config.dtype == "float32",
            agree=sum(same for same, _ in counts),
            decisions=sum(total for _, total in counts),
        )
        wrong = [where for where, error in result.judged.items() if not error <= tolerance]
        if not wrong and result.agree < DECISIONS * result.decisions:
            why = f"of {result.decisions} decisions {result.agree} agree, and {DECISIONS:.0%} must"
            return replace(result, verdict="do not use", reason="; ".join(text for text in (why, note()) if text))
        if not wrong:
            return result
        why = cause(readings, self.truths, tolerance)
        if plan is padded and pads_left(teacher, self.sheets):
            why = "left padding: shorter sequences stand at the right end of their batch, at positions not their own"
        first = f"what is read differs by more than {tolerance:.0e}, first at {wrong[0]}"
        return replace(result, verdict="do not use", reason="; ".join(text for text in (why, first, note()) if text))

    def _load(self, **changes: str) -> Teacher:
        return load_teacher(self.config.model_copy(update=changes))

    def _rounding(self) -> str:
        """Whether Transformers' own bfloat16 is as far off: then it is the model that does not bear it, and not our pass."""
        plain = read_reference(self.config, self.source, self.sheets, encoder=self.encoder.encoder, dtype="bfloat16")
        errors = depth_errors([t.reading for t in plain], self.truths)
        if max(errors) <= BFLOAT16:
            return f"plain Transformers in bfloat16 differs by {max(errors):.1e} alone"
        return (
            f"plain Transformers in bfloat16 differs by {max(errors):.1e} itself: the model does not bear the rounding"
        )

    def _gguf(self, gguf: Path | None, directory: Path | None, usual: Plan) -> ModeResult:
        """Compare a GGUF file with the safetensors that it was made of."""
        if gguf is None or directory is None:
            why = "its safetensors are not named (--sibling)" if gguf else "no GGUF file is named (--gguf)"
            return _missing("GGUF", why)
        exam = self
        if gguf == self.source:
            truths = read_reference(self.config, directory, self.sheets, encoder=self.encoder.encoder)
            exam = replace(self, truths=truths)
        try:
            reader = load_tokenizer(directory if gguf == self.source else gguf)
            other = PromptEncoder(reader, self.encoder.task, encoder=self.encoder.encoder)
            pairs = [
                (p.id, p.sequences, other.encode(e, s.layout).sequences)
                for s in self.sheets
                for e, p in zip(s.rows, s.prompts, strict=True)
            ]
        except ModelError as error:
            return ModeResult(mode="GGUF", verdict="do not use", reason=str(error))
        apart = next((i for i, ours, theirs in pairs if ours != theirs), None)
        if apart is not None:
            why = f"its tokenizer reads row {apart!r} in other tokens than its safetensors' does"
            return ModeResult(mode="GGUF", verdict="do not use", reason=why)
        config = self.config.model_copy(update={"model": str(gguf)})
        return exam.compare("GGUF", lambda: load_teacher(config), usual, tolerance=GGUF, note=lambda: _stored(gguf))


def _missing(mode: str, reason: str) -> ModeResult:
    return ModeResult(mode=mode, verdict="not available", reason=reason)


def _prompts(encoder: PromptEncoder, number: int, limit: int) -> tuple[tuple[Check, ...], tuple[Sheet, ...]]:
    """Checks of the prompts, and the rows that are read: a sample, and in it the longest prompt that fits."""
    task, plain = encoder.task, Plain(encoder=encoder)
    layouts = layouts_of(task.kind, task.prompt)
    sample, candidates = choose_rows(task, number)
    bos = check_bos(plain, [s for e in sample for layout in layouts for s in plain.sequences(e, layout)])
    try:
        lengths = tokens_of(encoder, {e.id: e for e in [*sample, *candidates]}.values(), layouts)
    except ProbeKDError:
        # The encoder refuses what the check has found already.
        if bos.finding == "fault":
            return (bos,), ()
        if (cut := find_cut(plain, [*sample, *candidates], layouts)) is not None:
            return (cut, bos), ()
        raise
    rows = [e for e in sample if lengths[e.id] <= limit]
    longest = max((e for e in candidates if lengths[e.id] <= limit), key=lambda e: lengths[e.id], default=None)
    if longest is not None and longest not in rows:
        rows = [*rows[: number - 1], longest]
    context = check_context(lengths, limit)
    if not rows:
        return (bos, context), ()
    sheets = sheets_of(encoder, rows)
    if bos.finding == "ok":
        bos = check_bos(plain, [s.tokens for sheet in sheets for p in sheet.prompts for s in p.sequences])
    checks: tuple[Check, ...] = (check_tokens(plain, sheets), bos, context, check_padding(plain))
    if checks[0].finding == "ok":
        # Of prompts that are not the text's, a label has no place to follow.
        sheets = tuple(with_labels(encoder, sheet) for sheet in sheets)
        checks = (*checks, check_labels(plain, sheets))
    return checks, sheets


def _range(truths: tuple[Truth, ...]) -> Check:
    """Are the reference's own numbers finite, and would they be in float16?"""
    if not all(t.finite for t in truths):
        text = "the reference's own states overflow in float32: the weights are damaged"
        return Check(name="finite", finding="fault", text=text)
    largest, where = max(t.largest for t in truths)
    text = f"the largest number on the way is {largest:.3g}, {where}"
    if largest > FLOAT16_LARGEST:
        text += f": float16 would overflow (it ends at {FLOAT16_LARGEST}), and is not offered"
        return Check(name="finite", finding="warning", text=text)
    return Check(name="finite", finding="ok", text=text)


def _gguf_and_directory(source: Path, gguf: Path | None, sibling: Path | None) -> tuple[Path | None, Path | None]:
    """The GGUF file and the safetensors that are compared, as far as they are named."""
    if source.suffix == ".gguf":
        if gguf is not None:
            raise ConfigError("--gguf names a GGUF file of a teacher that is a directory; this teacher is a GGUF file")
        return source, None if sibling is None else resolve_model(sibling)
    if sibling is not None:
        raise ConfigError("--sibling names the safetensors of a teacher that is a GGUF file; this teacher is none")
    if gguf is not None and not (gguf.suffix == ".gguf" and gguf.is_file()):
        raise ConfigError(f"{gguf}: no such GGUF file")
    return gguf, source


def _expect_room(source: Path, teacher: Teacher) -> None:
    needed, free = weight_bytes(source, "float32"), free_memory(str(teacher.device))
    if needed > free:
        raise ModelError(
            f"{teacher.name}: the reference holds all weights in float32, {needed / 1e9:.1f} GB of which {free / 1e9:.1f} GB are "
            "free; examine it on a larger machine, or examine a smaller model of its family here"
        )


def _stored(gguf: Path) -> str:
    """What a GGUF file's precision takes from it."""
    from gguf import GGUFReader

    kinds = sorted({t.tensor_type.name for t in GGUFReader(gguf).tensors} - {"F32"})
    return f"its weights are stored as {', '.join(kinds)}, which is another model than its safetensors" if kinds else ""
