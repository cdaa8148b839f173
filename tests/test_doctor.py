"""The doctor: passes healthy models, and names each of the faults that are planted."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from workspace import Workspace, workspace

from probekd import cli
from probekd.doctor import Report, examine
from probekd.doctor.examine import MODES
from probekd.prompts import PromptEncoder
from probekd.tasks.base import Task
from probekd.teacher import passes as passes_module
from probekd.teacher.batching import PaddedBatch
from probekd.teacher.load import Teacher

ModelDir = Callable[[str], Path]
Doctor = Callable[..., tuple[int, str, str]]
KINDS = ("classification", "multiple_choice")
SMALL = {"train": 12, "test": 6}
PACKED = ("packed", "prefix")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run ``probekd doctor`` in this process; gives exit status, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["probekd", "doctor", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return call


@pytest.fixture
def task_file(tmp_path: Path, model_dir: ModelDir) -> Callable[..., Path]:
    """A task file of a kind; ``prompt`` is written into it."""

    def make(kind: str = "multiple_choice", **prompt: Any) -> Path:
        made: Workspace = workspace(
            tmp_path / kind, kind, teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL
        )
        if prompt:
            made.task["prompt"] = prompt
        made.write()
        return made.root / "task.yaml"

    return make


@pytest.fixture
def copy(model_dir: ModelDir, tmp_path: Path) -> Callable[[str], Path]:
    """A model directory that a test may spoil."""
    return lambda family: Path(shutil.copytree(model_dir(family), tmp_path / f"spoilt-{family}"))


def edit_weights(directory: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    weights = {name: change(name, w) for name, w in load_file(directory / "model.safetensors").items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def centre_norms(directory: Path) -> None:
    """Gemma scales by 1 + weight; twice the usual scale of queries and keys makes rounding in bfloat16 grow."""
    edit_weights(directory, lambda name, w: w - 1 if w.ndim == 1 else w)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def verdicts(report: Report) -> dict[str, str]:
    return {m.mode: m.verdict for m in report.modes}


def reason(report: Report, mode: str) -> str:
    return next(m.reason for m in report.modes if m.mode == mode)


def seen(report: Report, check: str) -> tuple[str, str]:
    found = next(c for c in report.checks if c.name == check)
    return found.finding, found.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bert", "bloom"])
def test_healthy_models_pass(
    family: str, kind: str, call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    directory = copy(family)
    if family == "gemma3":
        centre_norms(directory)
    status, out, err = call("--teacher", directory, "--task", task_file(kind), "--json")
    assert status == 0, out + err
    found = json.loads(out)
    assert found["healthy"] and all(c["finding"] != "fault" for c in found["checks"])
    modes = {m["mode"]: m for m in found["modes"]}
    assert tuple(modes) == MODES
    missing = {"GGUF", *(PACKED if family in ("bert", "bloom") else ())}
    for name, mode in modes.items():
        assert mode["verdict"] == ("not available" if name in missing else "use"), mode
        assert bool(mode["reason"]) == (name in missing)
        if name not in missing:
            depths = (4 if family == "gemma3" else 2 if family == "bloom" else 3) if name != "depth cut" else None
            assert mode["rows"] == 8 and 0 < mode["agree"] <= mode["decisions"]
            assert max(mode["by_depth"]) <= (1e-4 if name != "bfloat16" else 0.05)
            assert depths is None or len(mode["by_depth"]) >= depths
            spoken = family != "bert" and name != "depth cut"
            assert bool(mode["readouts"]) == spoken
    assert modes["padded"]["agree"] == modes["padded"]["decisions"]
    assert len(modes["depth cut"]["by_depth"]) < len(modes["padded"]["by_depth"])


def test_bfloat16_that_the_model_does_not_bear(model_dir: ModelDir, choices: Task) -> None:
    report = examine(str(model_dir("gemma3")), choices)
    assert {m for m, v in verdicts(report).items() if v == "do not use"} == {"bfloat16"}
    assert "itself: the model does not bear the rounding" in reason(report, "bfloat16")


def test_the_tables_say_it_for_people(call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path]) -> None:
    status, out, _ = call("--teacher", model_dir("bloom"), "--task", task_file(), "--rows", "3")
    assert status == 0
    assert all(f"\n {mode} " in out for mode in MODES)
    assert "worst relative error" in out and "decisions that agree" in out
    assert "packed: not available: BloomModel " in out
    assert "GGUF: not available: no GGUF file is named (--gguf)" in out


def test_several_orders_and_a_chat_template(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    from tiny import CHAT_TEMPLATE

    directory = copy("llama")
    edit_json(directory / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    task = task_file(chat=True, system="Be brief.", permutations=4)
    status, out, err = call("--teacher", directory, "--task", task, "--json")
    assert status == 0, out + err
    assert verdicts_of(out) == {m: "not available" if m == "GGUF" else "use" for m in MODES}


def verdicts_of(out: str) -> dict[str, str]:
    return {m["mode"]: m["verdict"] for m in json.loads(out)["modes"]}


def test_a_tokenizer_that_pads_left_does_not_matter(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    directory = copy("gpt2")
    edit_json(directory / "tokenizer_config.json", padding_side="left", pad_token="</s>")
    status, out, _ = call("--teacher", directory, "--task", task_file())
    assert status == 0
    assert "the tokenizer pads on the left, our batches on the right" in out


# What follows is planted: exit status 1, and the fault by its name.


@pytest.mark.parametrize("guarded", [True, False])
def test_a_double_bos(
    guarded: bool,
    call: Doctor,
    model_dir: ModelDir,
    task_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = task_file("classification", template="<s>Text: {{ question }}\nLabel:", instruction="")
    if not guarded:
        monkeypatch.setattr(PromptEncoder, "_tokenise", without_guard(PromptEncoder._tokenise))
    status, out, err = call("--teacher", model_dir("llama"), "--task", task)
    assert status == 1, err
    assert "double BOS: prompts begin with 2 BOS tokens" in out
    # What the encoder refuses cannot be read.
    assert ("worst relative error" in out) == (not guarded)


def test_a_double_cls(call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path]) -> None:
    task = task_file("classification", template="[CLS] Text: {{ question }}\nLabel:", instruction="")
    status, out, err = call("--teacher", model_dir("bert"), "--task", task)
    assert status == 1, err
    assert "double BOS: prompts begin with 2 BOS tokens" in out


def test_a_tokenizer_that_adds_two_bos_by_itself(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    directory = copy("llama")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    opening = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [opening, opening, {"Sequence": {"id": "A", "type_id": 0}}]
    number = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<s>")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, out, err = call("--teacher", directory, "--task", task_file("classification"))
    assert status == 1, err
    assert "double BOS: prompts begin with 2 BOS tokens" in out


def test_a_tokenizer_that_truncates_by_itself(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    """Ours and the plain reading agree then, and both lack the end of the text."""
    directory = copy("llama")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    assert tokenizer["normalizer"] is None
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": r"(?<=\A.{12})(?m:.*)"}, "content": ""}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    status, out, err = call("--teacher", directory, "--task", task_file("classification"))
    assert status == 1, err
    assert "the prompt is truncated: the tokenizer drops its end" in out


def without_guard(tokenise: Callable[..., Any]) -> Callable[..., Any]:
    """``_tokenise`` for which no token is BOS."""

    def quiet(self: PromptEncoder, text: str) -> Any:
        bos = self.tokenizer.bos_token
        self.tokenizer.bos_token = None
        try:
            return tokenise(self, text)
        finally:
            self.tokenizer.bos_token = bos

    return quiet


def test_a_double_bos_of_the_encoder_itself(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template writes BOS, and the text is tokenised with special tokens besides."""
    from tiny import CHAT_TEMPLATE

    directory = copy("llama")
    edit_json(directory / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    tokenise = PromptEncoder._tokenise

    def doubled(self: PromptEncoder, text: str) -> Any:
        ids, offsets = tokenise(self, text)
        return [self.tokenizer.bos_token_id, *ids], [(0, 0), *offsets]

    monkeypatch.setattr(PromptEncoder, "_tokenise", doubled)
    status, out, _ = call("--teacher", directory, "--task", task_file("classification", chat=True))
    assert status == 1
    assert "double BOS: prompts begin with 2 BOS tokens" in out


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("followed", [True, False], ids=["read there", "read elsewhere"])
def test_left_padding(
    family: str,
    followed: bool,
    call: Doctor,
    model_dir: ModelDir,
    task_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inputs, at = PaddedBatch.inputs, PaddedBatch.at

    def left(self: PaddedBatch, teacher: Teacher) -> dict[str, Any]:
        made = inputs(self, teacher)
        for row, member in zip(made["input_ids"], self.members, strict=True):
            row.copy_(row.roll(self.shape[1] - len(member.sequence.tokens)))
        return made

    def there(self: PaddedBatch, member: int, token: int) -> int:
        return at(self, member, token) + self.shape[1] - len(self.members[member].sequence.tokens)

    monkeypatch.setattr(PaddedBatch, "inputs", left)
    if followed:
        monkeypatch.setattr(PaddedBatch, "at", there)
    status, out, _ = call("--teacher", model_dir(family), "--task", task_file())
    assert status == 1
    assert "padded: do not use: left padding" in out


def hooked(change: Callable[[Teacher, int, torch.Tensor], tuple[int, torch.Tensor]]) -> Callable[..., Any]:
    """``state_hooks`` whose visits are bent."""
    hooks = passes_module.state_hooks

    def bent(
        teacher: Teacher, depths: Sequence[int], visit: Callable[[int, torch.Tensor], None], *, stop: bool
    ) -> AbstractContextManager[None]:
        return hooks(teacher, depths, lambda k, h: visit(*change(teacher, k, h)), stop=stop)

    return bent


@pytest.mark.parametrize("flat", [False, True], ids=["random norm", "norm of ones"])
def test_states_after_the_norm(
    flat: bool,
    call: Doctor,
    copy: Callable[[str], Path],
    task_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory = copy("llama")
    if flat:
        # Such a norm changes nothing when it is applied again, so that comparing behind it would not see it.
        edit_weights(directory, lambda name, w: torch.ones_like(w) if name == "model.norm.weight" else w)
    bent = hooked(lambda t, k, h: (k, t.norm(h) if k == t.depths else h))
    monkeypatch.setattr(passes_module, "state_hooks", bent)
    status, out, _ = call("--teacher", directory, "--task", task_file())
    assert status == 1
    for mode in ("padded", "packed", "prefix", "streamed"):
        assert f"{mode}: do not use: the state at the last depth is that after the final norm" in out
    # The last depth is not in the cut.
    assert "depth cut: do not use" not in out


@pytest.mark.parametrize(("shift", "where"), [(1, "above"), (-1, "below")])
def test_a_shifted_depth(
    shift: int,
    where: str,
    call: Doctor,
    model_dir: ModelDir,
    task_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooks = passes_module.state_hooks

    def bent(
        teacher: Teacher, depths: Sequence[int], visit: Callable[[int, torch.Tensor], None], *, stop: bool
    ) -> AbstractContextManager[None]:
        last = len(teacher.blocks)
        moved = sorted({min(max(k + shift, 0), last) for k in depths})

        def back(k: int, states: torch.Tensor) -> None:
            for depth in depths:
                if min(max(depth + shift, 0), last) == k:
                    visit(depth, states)

        return hooks(teacher, moved, back, stop=stop)

    monkeypatch.setattr(passes_module, "state_hooks", bent)
    status, out, _ = call("--teacher", model_dir("llama"), "--task", task_file())
    assert status == 1
    said = f"do not use: the depths are shifted by one: each state is that of the depth {where}"
    assert f"padded: {said}" in out and f"packed: {said}" in out and f"depth cut: {said}" in out


@pytest.mark.parametrize("end", ["right", "left"])
def test_a_truncated_prompt(
    end: str,
    call: Doctor,
    model_dir: ModelDir,
    task_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenise = PromptEncoder._tokenise

    def cut(self: PromptEncoder, text: str) -> Any:
        part = slice(0, 20) if end == "right" else slice(-20, None)
        return tuple(list(each)[part] for each in tokenise(self, text))

    monkeypatch.setattr(PromptEncoder, "_tokenise", cut)
    status, out, err = call("--teacher", model_dir("llama"), "--task", task_file("classification"))
    assert status == 1, err
    assert "the prompt is truncated: 20 of its " in out


@pytest.mark.parametrize("end", ["right", "left"])
def test_a_prompt_that_is_cut_before_its_options(
    end: str, call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenise = PromptEncoder._tokenise

    def cut(self: PromptEncoder, text: str) -> Any:
        part = slice(0, 12) if end == "right" else slice(-4, None)
        return tuple(list(each)[part] for each in tokenise(self, text))

    monkeypatch.setattr(PromptEncoder, "_tokenise", cut)
    status, out, err = call("--teacher", model_dir("llama"), "--task", task_file())
    assert status == 1, err
    assert "the prompt is truncated, or a part of it dropped" in out and "row '" in out


def test_decisions_that_do_not_agree_rule_a_mode_out(
    model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["probekd.doctor.examine"], "agreement", lambda *_: (7, 10))
    report = examine(str(model_dir("llama")), choices)
    assert verdicts(report)["bfloat16"] == "do not use"
    assert "of 20 decisions 14 agree, and 80% must" in reason(report, "bfloat16")


def test_a_prompt_longer_than_the_context(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    directory = copy("llama")
    edit_json(directory / "config.json", max_position_embeddings=20)
    status, out, _ = call("--teacher", directory, "--task", task_file())
    assert status == 1
    assert "the model's context is 20: 18 rows at least are too long" in out


@pytest.mark.parametrize("where", ["pass", "weights"])
def test_overflow_in_float16(
    where: str,
    call: Doctor,
    copy: Callable[[str], Path],
    task_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights whose states float16 does not hold: cast in our pass they are found; kept as they are they are known."""
    directory = copy("llama")
    edit_weights(directory, lambda name, w: w * 1e6 if name == "model.layers.1.mlp.down_proj.weight" else w)
    if where == "pass":
        monkeypatch.setattr(passes_module, "state_hooks", hooked(lambda _, k, h: (k, h.half().to(h.dtype))))
    status, out, _ = call("--teacher", directory, "--task", task_file())
    assert status == (1 if where == "pass" else 0), out
    assert "float16 would overflow" in out
    assert ("padded: do not use: the teacher's state at depth 2" in out) == (where == "pass")
    assert ("is not finite (NaN or infinity)" in out) == (where == "pass")


def test_overflow_in_float16_that_no_read_state_shows(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    """Between two matrices, of which the second takes back what the first put in."""
    directory = copy("llama")
    scale = {"up_proj": 1e7, "down_proj": 1e-7}
    edit_weights(
        directory,
        lambda name, w: w * scale[name.split(".")[-2]] if ".1.mlp." in name and name.split(".")[-2] in scale else w,
    )
    status, out, _ = call("--teacher", directory, "--task", task_file(), "--json")
    assert status == 0, out
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == "finite"]
    assert check["finding"] == "warning" and "float16 would overflow" in check["text"]
    assert "out of model.layers.1.mlp.up_proj" in check["text"]


def test_weights_that_overflow_everywhere(
    call: Doctor, copy: Callable[[str], Path], task_file: Callable[..., Path]
) -> None:
    directory = copy("llama")
    edit_weights(directory, lambda name, w: w * torch.inf if name == "model.layers.1.mlp.down_proj.weight" else w)
    status, out, _ = call("--teacher", directory, "--task", task_file(), "--json")
    assert status == 1
    assert "the reference's own states overflow in float32" in out


def test_a_wrong_label_token(
    call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter without the blank that comes before it is another token."""
    monkeypatch.setattr(
        PromptEncoder,
        "label_tokens",
        lambda self, e: [
            self.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in "ABCDE"[: len(e.options)]
        ],
    )
    status, out, _ = call("--teacher", model_dir("llama"), "--task", task_file())
    assert status == 1
    assert "the label token of 'A' is 'A', and it begins with ' A'" in out


def test_labels_that_begin_alike_are_a_warning(model_dir: ModelDir, kinds_of_text: Task) -> None:
    labels = ("tool", "toolbox", "food")
    rows = tuple(replace(e, options=labels) for e in kinds_of_text.rows())
    task = replace(kinds_of_text, labels=labels, splits={"train": rows})
    report = examine(str(model_dir("llama")), task)
    finding, text = seen(report, "labels")
    assert (finding, text.partition(":")[0]) == ("warning", "'tool' and 'toolbox' begin with the same token, ' tool'")
    assert report.healthy


def test_rows_without_answers_are_decided_by_the_readouts(model_dir: ModelDir, choices: Task) -> None:
    rows = tuple(replace(e, answer=None) for e in choices.rows())
    report = examine(str(model_dir("llama")), replace(choices, splits={"test": rows}))
    assert report.healthy
    padded = report.modes[0]
    assert (padded.rows, padded.agree, padded.decisions) == (5, 10, 10)


def test_a_wrong_head_is_seen_in_the_readouts(
    model_dir: ModelDir, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["probekd.doctor.examine"]
    load = module.load_teacher
    monkeypatch.setattr(module, "load_teacher", lambda *a, **k: replace(load(*a, **k), softcap=1.0))
    report = examine(str(model_dir("llama")), choices)
    assert verdicts(report)["padded"] == "do not use"
    assert "first at label_logits" in reason(report, "padded")
    # No readouts there.
    assert verdicts(report)["depth cut"] == "use"


# GGUF


def test_a_gguf_file_of_the_teacher(
    call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    good = write_gguf(model_dir("llama"), tmp_path / "good.gguf")
    teacher = ("--teacher", model_dir("llama"), "--task", task_file())
    status, out, _ = call(*teacher, "--gguf", good, "--json")
    assert (status, verdicts_of(out)["GGUF"]) == (0, "use"), out
    status, out, _ = call("--teacher", good, "--task", task_file(), "--sibling", model_dir("llama"), "--json")
    assert status == 0, out
    assert verdicts_of(out) == {m: "not available" if m == "streamed" else "use" for m in MODES}
    wrong = write_gguf(model_dir("llama"), tmp_path / "wrong.gguf", permute=False)
    for arguments in (
        (*teacher, "--gguf", wrong),
        ("--teacher", wrong, "--task", task_file(), "--sibling", model_dir("llama")),
    ):
        status, out, _ = call(*arguments)
        assert status == 1
        assert "GGUF: do not use: what is read differs by more than 1e-03, first at depth 1" in out
    qwen = write_gguf(model_dir("llama"), tmp_path / "qwen.gguf", family="qwen2")
    status, out, _ = call(*teacher, "--gguf", qwen)
    assert status == 1 and "GGUF files of the family 'qwen2' are refused" in out


def test_a_gguf_file_that_lost_precision_says_so(
    call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    monkeypatch.setattr(sys.modules["probekd.doctor.examine"], "GGUF", 1e-6)
    half = write_gguf(model_dir("llama"), tmp_path / "half.gguf", half=True)
    status, out, _ = call("--teacher", model_dir("llama"), "--task", task_file(), "--gguf", half)
    assert status == 1
    assert "its weights are stored as F16, which is another model than its safetensors" in out


def test_a_gguf_file_with_another_tokenizer(
    call: Doctor, copy: Callable[[str], Path], model_dir: ModelDir, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    from gguf_files import write_gguf

    directory = copy("llama")
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:10]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = write_gguf(directory, tmp_path / "other.gguf")
    status, out, _ = call("--teacher", model_dir("llama"), "--task", task_file(), "--gguf", other)
    assert status == 1
    assert "GGUF: do not use: its tokenizer reads row " in out


# What cannot be examined: exit status 2, one message, no traceback.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--teacher", "nowhere/at/all"), "no such model directory"),
        (("--teacher", "LLAMA", "--task", "wordnet_kindz"), "did you mean 'wordnet_kinds'?"),
        (("--teacher", "LLAMA", "--gguf", "none.gguf"), "none.gguf: no such GGUF file"),
        (("--teacher", "LLAMA", "--sibling", "none"), "--sibling names the safetensors of a teacher that is a GGUF"),
        (("--teacher", "NOT"), "config.json is missing"),
    ],
    ids=["no model", "no task", "no gguf", "sibling", "no config"],
)
def test_what_cannot_be_examined_is_one_message(
    arguments: tuple[str, ...],
    message: str,
    call: Doctor,
    model_dir: ModelDir,
    task_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    places = {"LLAMA": str(model_dir("llama")), "NOT": str(tmp_path)}
    given = [places.get(a, a) for a in arguments]
    status, out, err = call(*given, *([] if "--task" in arguments else ["--task", task_file()]))
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and message in err and "Traceback" not in err and err.count("\n") == 1


def test_a_template_that_shows_no_options_is_the_users_to_mend(
    call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path]
) -> None:
    status, _, err = call("--teacher", model_dir("llama"), "--task", task_file(template="{{ question }}"))
    assert status == 2 and "does not show option A" in err


def test_a_model_that_does_not_fit_is_not_begun(
    call: Doctor, model_dir: ModelDir, task_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["probekd.doctor.examine"], "free_memory", lambda _: 10)
    status, _, err = call("--teacher", model_dir("llama"), "--task", task_file())
    assert status == 2 and "the reference holds all weights in float32" in err
