from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CAUSAL, FAMILIES, choice_row
from transformers import AutoModel, AutoModelForCausalLM

from probekd.config import PromptConfig, TeacherConfig
from probekd.errors import DataError, ModelError, StoreError
from probekd.extraction import default_positions, extract, survey_task
from probekd.extraction import job as extraction_module
from probekd.files import file_digest
from probekd.states import States, StateStore, link_store
from probekd.tasks.base import Example, Task
from probekd.teacher.load import Teacher, load_teacher

TeacherOf = Callable[[str], Teacher]
ModelDir = Callable[[str], Path]


class RowByRow:
    """The oracle: Transformers alone, one unpadded text at a time, options found by searching the text backwards."""

    def __init__(self, directory: Path, encoder: bool) -> None:
        family = AutoModel if encoder else AutoModelForCausalLM
        self.model = family.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        self.encoder = encoder

    def states(self, tokenizer: object, text: str, spans: list[tuple[int, int]]) -> dict[str, np.ndarray]:
        """By position: (L + 1, d), or (L + 1, spans, d), as ``output_hidden_states`` gives them."""
        encoding = tokenizer(text, return_offsets_mapping=True)
        offsets = encoding.pop("offset_mapping")
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([encoding["input_ids"]]), output_hidden_states=True)
        hidden = torch.stack(out.hidden_states)[:, 0].double().numpy()
        inside = [[i for i, (a, b) in enumerate(offsets) if a < stop and b > start] for start, stop in spans]
        return {
            "answer": hidden[:, 0 if self.encoder else -1],
            "option_end": np.stack([hidden[:, tokens[-1]] for tokens in inside], axis=1),
            "option_mean": np.stack([hidden[:, tokens].mean(1) for tokens in inside], axis=1),
        }

    def listed(self, tokenizer: object, row: Example) -> dict[str, np.ndarray]:
        text, spans = f"{row.question}\n", []
        for letter, option in zip("ABCDEFGHIJ", row.options, strict=False):
            start = len(text) + len(f"{letter}. ")
            text += f"{letter}. {option}\n"
            spans.append((start, start + len(option)))
        return self.states(tokenizer, f"{text}Answer:", spans)

    def branched(self, tokenizer: object, row: Example) -> dict[str, np.ndarray]:
        prefix = f"Question: {row.question}\nAnswer: "
        parts = [self.states(tokenizer, prefix + o, [(len(prefix), len(prefix) + len(o))]) for o in row.options]
        return {p: np.concatenate([part[p] for part in parts], axis=1) for p in ("option_end", "option_mean")}


def expect_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_transformers_own_row_by_row(
    family: str, teacher_of: TeacherOf, model_dir: ModelDir, choices: Task
) -> None:
    teacher = teacher_of(family)
    states = extract(teacher, choices)
    oracle = RowByRow(model_dir(family), teacher.encoder)
    assert states.layouts == ("listed", "branched")
    assert states.positions("listed") == ("answer", "option_end", "option_mean")
    assert states.positions("branched") == ("option_end", "option_mean")
    for layout in states.layouts:
        assert states.depths(layout) == tuple(range(teacher.depths + 1))
        for row in choices.rows():
            expected = getattr(oracle, layout)(teacher.tokenizer, row)
            for position in states.positions(layout):
                for depth in range(teacher.depths + 1):
                    ours = states.read(layout, position, depth, [row.id])[0]
                    ours, absent = (ours, ours[:0]) if position == "answer" else np.split(ours, [len(row.options)])
                    assert not absent.any()
                    theirs = expected[position][depth]
                    if depth < teacher.depths or teacher.norm is None:
                        expect_close(ours, theirs)
                    elif position != "option_mean":  # a mean does not pass through a norm
                        assert np.abs(ours - theirs).max() > 0.01 * np.abs(theirs).max()
                        expect_close(teacher.norm(torch.from_numpy(ours)).numpy(), theirs)


def test_the_mean_at_the_last_depth_is_taken_before_the_norm(llama: Teacher, choices: Task) -> None:
    row = choice_row("one", "Why?", "a", "hammer")
    task = replace(choices, splits={"train": (row,)})
    states = extract(llama, task, layouts=["branched"])
    store = states.stores[0]
    assert store.index["option_tokens"][0][0] == 1
    end, mean = (states.read("branched", p, llama.depths, ["one"])[0, 0] for p in ("option_end", "option_mean"))
    np.testing.assert_array_equal(end, mean)


@pytest.mark.parametrize("family", CAUSAL)
def test_readouts_are_stored_with_the_states(
    family: str, teacher_of: TeacherOf, model_dir: ModelDir, choices: Task
) -> None:
    teacher = teacher_of(family)
    states = extract(teacher, choices)
    model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32).eval()
    assert states.outputs("listed") == ("label_logits",)
    assert states.outputs("branched") == ("option_loglik",)

    def logp(text: str) -> tuple[list[int], torch.Tensor]:
        ids = teacher.tokenizer(text)["input_ids"]
        with torch.no_grad():
            return ids, model(input_ids=torch.tensor([ids])).logits[0].double()

    for row in choices.rows():
        listed = (
            f"{row.question}\n" + "".join(f"{c}. {o}\n" for c, o in zip("ABCDE", row.options, strict=False)) + "Answer:"
        )
        _, logits = logp(listed)
        letters = [
            teacher.tokenizer(f" {c}", add_special_tokens=False)["input_ids"] for c in "ABCDE"[: len(row.options)]
        ]
        expected = [float(logits[-1, ids[0]]) for ids in letters]
        np.testing.assert_allclose(states.column("listed", "label_logits", [row.id])[0], expected, rtol=1e-4, atol=1e-4)
        prefix = f"Question: {row.question}\nAnswer:"
        start = len(teacher.tokenizer(prefix)["input_ids"])
        expected = []
        for option in row.options:
            ids, logits = logp(f"{prefix} {option}")
            said = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[start - 1 :]
            expected.append(float(said.sum()))
        np.testing.assert_allclose(states.column("branched", "option_loglik", [row.id])[0], expected, rtol=1e-4)


def test_the_index_describes_the_rows(llama: Teacher, choices: Task) -> None:
    store = extract(llama, choices, splits=["train"], layouts=["branched"]).stores[0]
    index = store.index
    rows = {e.id: e for e in choices.rows("train")}
    assert sorted(index["id"]) == sorted(rows)
    assert set(index["split"]) == {"train"}
    for row_id, count, sizes in zip(index["id"], index["num_options"], index["option_bytes"], strict=True):
        assert count == len(rows[row_id].options)
        assert sizes == [len(f" {o}".encode()) for o in rows[row_id].options]
    assert store.verify() == []
    assert json.loads((store.directory / "manifest.json").read_text())["tokens"] == sum(index["num_tokens"])


def test_no_head_no_readouts(model_dir: ModelDir, tmp_path: Path, choices: Task) -> None:
    directory = Path(shutil.copytree(model_dir("llama"), tmp_path / "model"))
    weights = load_file(directory / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    states = extract(directory, choices)
    assert states.outputs("listed") == states.outputs("branched") == ()
    assert "label_logits" not in states.stores[0].index


def test_classification_is_read_at_answer(llama: Teacher, kinds_of_text: Task) -> None:
    states = extract(llama, kinds_of_text)
    assert states.layouts == ("listed",)
    assert states.positions("listed") == ("answer",)
    assert states.read("listed", "answer", 1, ["k3", "k0"]).shape == (2, 32)
    assert len(states.column("listed", "label_logits", ["k0"])[0]) == 3
    assert default_positions(kinds_of_text, "branched") == ("option_end", "option_mean")


def test_no_rows_have_no_states(llama: Teacher, choices: Task) -> None:
    states = extract(llama, choices, splits=["train"], layouts=["listed"])
    with pytest.raises(DataError, match="no rows are asked for"):
        states.read("listed", "answer", 1, [])


def test_read_keeps_the_order_asked_for_across_splits(llama: Teacher, choices: Task) -> None:
    states = extract(llama, choices)
    ids = ["e", "b", "a", "e"]
    together = states.read("listed", "option_end", 2, ids)
    assert together.shape == (4, 5, 32)
    for got, row_id in zip(together, ids, strict=True):
        alone = states.read("listed", "option_end", 2, [row_id])[0]
        np.testing.assert_array_equal(got[: len(alone)], alone)
    with pytest.raises(DataError, match="1 rows, such as 'zz', have no listed states"):
        states.read("listed", "answer", 1, ["a", "zz"])


# The cache ------------------------------------------------------------------------------------------------------------


def snapshot(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.iterdir())}


def without_time(name: str, content: bytes) -> object:
    if name != "manifest.json":
        return content
    return {k: v for k, v in json.loads(content).items() if k not in ("seconds", "sha256")}


@pytest.fixture
def two_rows_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction_module, "ROWS_AT_ONCE", 2)


@pytest.mark.parametrize("layout", ["listed", "branched"])
def test_a_killed_extraction_goes_on_where_it_was(
    layout: str, llama: Teacher, choices: Task, two_rows_a_shard: None
) -> None:
    def run() -> StateStore:
        return extract(llama, choices, splits=["train"], layouts=[layout]).stores[0]

    directory = run().directory
    before = snapshot(directory)
    assert set(before) == {"manifest.json", "index.parquet", "shard-00000.safetensors", "shard-00001.safetensors"}
    (directory / "manifest.json").unlink()
    (directory / "shard-00001.safetensors").unlink()
    (directory / ".digests").mkdir()
    (directory / ".digests" / "shard-00000").write_text(file_digest(directory / "shard-00000.safetensors"))
    (directory / ".shard-00001.safetensors.0123abcd.tmp").write_bytes(b"half")
    assert run().directory == directory
    after = snapshot(directory)
    assert set(after) == set(before)
    for name, (content, _) in before.items():
        assert without_time(name, after[name][0]) == without_time(name, content), name
    assert after["shard-00000.safetensors"][1] == before["shard-00000.safetensors"][1]
    assert after["shard-00001.safetensors"][1] > before["shard-00001.safetensors"][1]


def test_a_kill_in_the_second_shard_leaves_the_first(
    llama: Teacher, choices: Task, two_rows_a_shard: None, monkeypatch: pytest.MonkeyPatch, cache_directory: Path
) -> None:
    from probekd.teacher import extract as module

    read, calls = module.read_states, []

    def killed(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(*args, **options)

    monkeypatch.setattr(module, "read_states", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(llama, choices, splits=["train"], layouts=["listed"])
    (directory,) = (cache_directory / "states").iterdir()
    assert sorted(p.name for p in directory.iterdir()) == [".digests", ".plan.json", "shard-00000.safetensors"]
    with pytest.raises(StoreError, match="not a finished state store"):
        StateStore.open(directory)
    extract(llama, choices, splits=["train"], layouts=["listed"])
    assert len(calls) == 3
    fresh = extract(llama, choices, splits=["train"], layouts=["listed"], cache=cache_directory / "other").stores[0]
    for path in fresh.directory.glob("*.safetensors"):
        assert path.read_bytes() == (directory / path.name).read_bytes()


def test_shards_hold_what_one_shard_would(
    llama: Teacher, choices: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract(llama, choices, cache=tmp_path / "whole")
    monkeypatch.setattr(extraction_module, "ROWS_AT_ONCE", 2)
    parts = extract(llama, choices, cache=tmp_path / "parts")
    assert [len(s.manifest["shards"]) for s in parts.stores] == [2, 2, 1, 1]
    ids = [e.id for e in choices.rows()]
    for layout in whole.layouts:
        for position in whole.positions(layout):
            np.testing.assert_allclose(
                parts.read(layout, position, 2, ids), whole.read(layout, position, 2, ids), rtol=1e-4, atol=1e-5
            )


def test_a_finished_store_is_not_computed_again(llama: Teacher, choices: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    first = extract(llama, choices)
    monkeypatch.setattr("probekd.teacher.passes.run_body", lambda *_: pytest.fail("the teacher ran"))
    assert [s.directory for s in extract(llama, choices).stores] == [s.directory for s in first.stores]


def keys(teacher: Teacher, task: Task, **options: object) -> list[str]:
    return [s.directory.name for s in extract(teacher, task, splits=["train"], layouts=["listed"], **options).stores]


def test_key_is_blind_to_row_order_and_place(
    llama: Teacher, choices: Task, model_dir: ModelDir, tmp_path: Path
) -> None:
    shuffled = replace(choices, splits={"train": choices.splits["train"][::-1]})
    assert keys(llama, shuffled) == keys(llama, choices)
    copy = shutil.copytree(model_dir("llama"), tmp_path / "elsewhere")
    assert keys(load_teacher(copy), choices) == keys(llama, choices)


def test_key_changes_with_everything_that_changes_a_state(
    llama: Teacher, choices: Task, model_dir: ModelDir, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(model_dir("llama"), tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    bf16 = load_teacher(TeacherConfig(model=str(model_dir("llama")), dtype="bfloat16"))
    template = PromptConfig(template="{{ question }} {{ options | join(' ') }}")
    reworded = (replace(choices.splits["train"][0], question="What does a cow eat??"), *choices.splits["train"][1:])
    found = {
        "as it is": keys(llama, choices),
        "template": keys(llama, replace(choices, prompt=template)),
        "a question": keys(llama, replace(choices, splits={"train": reworded})),
        "fewer rows": keys(llama, replace(choices, splits={"train": choices.splits["train"][1:]})),
        "weights": keys(load_teacher(copy), choices),
        "dtype": keys(bf16, choices),
        "positions": keys(llama, choices, positions=["answer"]),
        "depths": keys(llama, choices, depths=[0, 2]),
    }
    assert len({key for (key,) in found.values()}) == len(found)


def test_answers_play_no_part(llama: Teacher, choices: Task) -> None:
    unanswered = tuple(replace(e, answer=None) for e in choices.splits["train"])
    assert keys(llama, replace(choices, splits={"train": unanswered})) == keys(llama, choices)


def test_depths_and_positions_asked_for(llama: Teacher, choices: Task) -> None:
    some = extract(llama, choices, depths=[2, 0], positions=["option_end"], layouts=["listed"])
    every = extract(llama, choices, layouts=["listed"])
    assert (some.depths("listed"), some.positions("listed")) == ((0, 2), ("option_end",))
    ids = [e.id for e in choices.rows()]
    np.testing.assert_array_equal(some.read("listed", "option_end", 2, ids), every.read("listed", "option_end", 2, ids))
    assert some.column("listed", "label_logits", ids) == every.column("listed", "label_logits", ids)


@pytest.mark.parametrize("depth", [4, -1])
def test_a_depth_that_is_not_there(depth: int, llama: Teacher, choices: Task) -> None:
    with pytest.raises(DataError, match=rf"depth {depth} asked for.*has 3 blocks"):
        extract(llama, choices, depths=[0, depth])


def test_bfloat16_is_close_and_takes_half_the_space(llama: Teacher, model_dir: ModelDir, choices: Task) -> None:
    exact = extract(llama, choices, layouts=["listed"])
    rough = extract(TeacherConfig(model=str(model_dir("llama")), dtype="bfloat16"), choices, layouts=["listed"])
    sizes = [s.stores[0].manifest["shards"][0]["bytes"] for s in (rough, exact)]
    assert sizes[0] < 0.6 * sizes[1]
    ours, theirs = (s.read("listed", "answer", 3, ["a", "b", "c"]) for s in (rough, exact))
    assert ours.dtype == np.float32
    assert 0 < np.abs(ours - theirs).max() < 0.05 * np.abs(theirs).max()
    with pytest.raises(StoreError, match="2 different teachers or dtypes"):
        _ = (exact + rough).teacher


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite(model_dir: ModelDir, tmp_path: Path, choices: Task) -> None:
    directory = Path(shutil.copytree(model_dir("llama"), tmp_path / "model"))
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"depth 2, row '[a-e]' is not finite"):
        extract(directory, choices)


def test_a_broken_hook_stops_the_extraction_before_anything_is_written(
    llama: Teacher, choices: Task, cache_directory: Path
) -> None:
    shifted = replace(llama, blocks=(llama.blocks[1], *llama.blocks[1:]))
    with pytest.raises(ModelError, match="our state at depth 0 differs"):
        extract(shifted, choices)
    assert not (cache_directory / "states").exists()


def with_max_length(teacher: Teacher, on_long: str) -> Teacher:
    config = TeacherConfig(model=teacher.name, on_long=on_long, max_length=45)
    return replace(teacher, max_length=45, config=config)


def test_a_prompt_that_is_too_long_is_an_error(llama: Teacher, choices: Task) -> None:
    with pytest.raises(
        DataError, match=r"row '[bcd]': its listed prompt has \d+ tokens, the teacher's\s+context is 45"
    ):
        extract(with_max_length(llama, "error"), choices)


def test_a_prompt_that_is_too_long_is_dropped_from_every_layout(llama: Teacher, choices: Task) -> None:
    teacher = with_max_length(llama, "drop")
    lengths = {
        p.id: max(len(s.tokens) for s in p.sequences)
        for survey in survey_task(llama, choices)[1]
        for p in survey.encode(range(len(survey.rows)))
        if survey.layout == "listed"
    }
    kept, surveys = survey_task(teacher, choices)
    expected = [e.id for e in choices.rows() if lengths[e.id] <= 45]
    assert 0 < len(expected) < 5
    assert [e.id for e in kept.rows()] == expected
    assert {e.id for survey in surveys for e in survey.rows} == set(expected)
    assert kept.notes == (
        f"{5 - len(expected)} rows were dropped: their prompts are longer than the teacher's context of 45 tokens",
    )
    states = extract(teacher, choices)
    assert sorted(i for s in states.stores if s.layout == "branched" for i in s.index["id"]) == sorted(expected)


def test_nothing_to_extract(llama: Teacher, choices: Task) -> None:
    with pytest.raises(DataError, match="nothing to extract"):
        extract(llama, choices, splits=["validation"])
    with pytest.raises(DataError, match="nothing to extract"):
        extract(llama, choices, layouts=["branched"], positions=["answer"])


def test_foreign_and_damaged_stores(llama: Teacher, choices: Task) -> None:
    store = extract(llama, choices, layouts=["listed"]).stores[0]
    shard = store.directory / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert store.verify() == ["shard-00000.safetensors"]
    shard.unlink()
    (store.directory / "index.parquet").unlink()
    assert store.verify() == ["shard-00000.safetensors", "index.parquet"]
    manifest: Mapping[str, object] = {**store.manifest, "format": 99}
    (store.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="format 99, this is 1"):
        StateStore.open(store.directory)


def test_a_linked_store_outlives_the_cache(llama: Teacher, choices: Task, tmp_path: Path) -> None:
    states = extract(llama, choices, layouts=["listed"], splits=["train"])
    store = states.stores[0]
    expected = states.read("listed", "answer", 2, ["a"])
    (store.directory / ".left.tmp").write_text("x")
    linked = link_store(store, tmp_path / "run")
    assert link_store(store, tmp_path / "run").directory == linked.directory
    assert (linked.directory / "index.parquet").samefile(store.directory / "index.parquet")
    shutil.rmtree(store.directory)
    assert linked.verify() == []
    assert not (linked.directory / ".left.tmp").exists()
    np.testing.assert_array_equal(States((linked,)).read("listed", "answer", 2, ["a"]), expected)


def test_a_row_is_read_from_the_store_that_holds_what_is_asked_for(llama: Teacher, choices: Task) -> None:
    what: dict[str, Any] = {"splits": ("train",), "layouts": ("listed",)}
    whole = extract(llama, choices, **what)
    ids = whole.ids("listed", "train")
    parts = [
        extract(llama, choices, positions=("answer",), depths=(1,), outputs=False, **what),
        extract(llama, choices, positions=("option_mean",), depths=(2,), **what),
    ]
    for order in (parts, parts[::-1]):
        states = order[0] + order[1]
        for position, depth in (("answer", 1), ("option_mean", 2)):
            np.testing.assert_array_equal(
                states.read("listed", position, depth, ids), whole.read("listed", position, depth, ids)
            )
        assert states.column("listed", "label_logits", ids) == whole.column("listed", "label_logits", ids)
        assert states.holding("listed", ids[:1]).stores == states.stores
    assert whole.holding("branched", ids).stores == () and whole.holding("listed", ["nobody"]).stores == ()


def test_a_store_that_is_removed_while_it_is_linked(
    llama: Teacher, choices: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekd import states as module

    store = extract(llama, choices, splits=["train"], layouts=["listed"], cache=tmp_path / "cache").stores[0]

    def gone(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(module.os, "link", gone)
    with pytest.raises(StoreError, match="was removed while it was being used; run the same command again"):
        link_store(store, tmp_path / "run")
    assert not (tmp_path / "run" / store.directory.name).exists()


def test_the_same_rows_in_another_split_are_found_there(llama: Teacher, choices: Task) -> None:
    rows = tuple(choices.rows("train"))
    for split in ("unlabelled", "train"):
        states = extract(llama, replace(choices, splits={split: rows}), layouts=["listed"])
        assert states.ids("listed", split) == sorted(e.id for e in rows)
