from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax as scipy_softmax

from probekd.config import ProbeConfig
from probekd.errors import DataError, StoreError
from probekd.probes.controls import fit_shuffled
from probekd.probes.features import LinearFit
from probekd.probes.fit import fit_probes, presence, soft_labels
from probekd.probes.pick import stack_or_single
from probekd.probes.probe import Probe
from probekd.probes.reader import Reader
from probekd.tasks.base import Example, Task

CONFIG = ProbeConfig(folds=3, l2=(0.03, 0.3), windows=(1,), stack=False, tolerance=1e-4)
LABELS = ("red", "green", "blue")
INFORMATIVE = 2
WIDTH = 6

Build = Callable[..., Any]


def rows(kind: str, split: str, n: int) -> list[Example]:
    """Rows of a split; multiple choice has 3 to 5 options."""
    out = []
    for i in range(n):
        options = LABELS if kind == "classification" else tuple(f"{split} {i} option {j}" for j in range(3 + i % 3))
        answer = (i * 7 + i // 3) % len(options) if split == "train" else None
        out.append(Example(id=f"{split}-{i}", question=f"Question {i} of {split}?", options=options, answer=answer))
    return out


def task_of(kind: str, *, n: int = 48, pool: int = 5) -> Task:
    splits = {"train": tuple(rows(kind, "train", n)), "unlabelled": tuple(rows(kind, "unlabelled", pool))}
    labels = LABELS if kind == "classification" else ()
    return Task(name="made", kind=kind, splits=splits, labels=labels)  # type: ignore[arg-type]


def states_of(task: Task, build: Build) -> Any:
    """Four depths of noise, but depth 2 knows the answers of the train rows nearly always."""
    generator = np.random.default_rng(3)
    classes = task.kind == "classification"
    layout, position = ("listed", "answer") if classes else ("branched", "option_end")
    values: dict[tuple[str, str, int], dict[str, np.ndarray]] = {}
    direction = generator.normal(size=(3, WIDTH)) * 1.5
    for depth in range(4):
        held = values[layout, position, depth] = {}
        for e in task.rows():
            x = generator.normal(size=WIDTH if classes else (len(e.options), WIDTH)) + 4
            if depth == INFORMATIVE and e.answer is not None:
                if classes:
                    x += direction[e.answer]
                else:
                    x[e.answer] += direction[0]
            held[e.id] = x.astype(np.float32)
    return build(
        splits={name: [e.id for e in members] for name, members in task.splits.items()},
        values=values,
        columns={layout: {"num_options": {e.id: len(e.options) for e in task.rows()}}},
    )


@pytest.fixture(params=["classification", "multiple_choice"])
def made(request: pytest.FixtureRequest, fake_states: Build, one_temperature: None) -> tuple[Task, Any, Probe]:
    task = task_of(request.param)
    states = states_of(task, fake_states)
    return task, states, fit_probes(states, task, config=CONFIG)


def test_what_the_nested_choice_predicts_is_softened_by_what_the_other_folds_know(
    fake_states: Build, one_temperature: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("classification")
    states = states_of(task, fake_states)
    asked = iter(range(1, 100))
    monkeypatch.setattr("probekd.probes.pick.Picker.flattery_inside", lambda self, level: 1.0)
    plain = fit_probes(states, task, config=CONFIG)
    monkeypatch.setattr("probekd.probes.pick.Picker.flattery_inside", lambda self, level: float(next(asked)))
    softened = fit_probes(states, task, config=CONFIG)
    assert set(plain.folds) == {0, 1, 2}
    np.testing.assert_allclose(softened.honest * (plain.folds + 1)[:, None], plain.honest, rtol=1e-6)


def only_fit(probe: Probe) -> LinearFit:
    """The fold models of a probe that reads one depth."""
    ((fit,),) = (fits.values() for fits in probe.fits)
    assert isinstance(fit, LinearFit) and probe.weights == (1.0,)
    return fit


def arrays(probe: Probe) -> dict[str, Any]:
    """All that a probe is made of, by name; arrays as they are."""
    flat = {f.name: getattr(probe, f.name) for f in fields(Probe) if f.name not in ("fits", "calibration")}
    flat |= {"scale": probe.calibration.scale, "shift": probe.calibration.shift}
    for number, fits in enumerate(probe.fits):
        for depth, fit in fits.items():
            flat |= {f"{number} {depth} {name}": tensor.numpy() for name, tensor in vars(fit).items()}
    return flat


def same(a: Probe, b: Probe) -> None:
    """Every field equal, bit by bit."""
    mine, theirs = arrays(a), arrays(b)
    assert list(mine) == list(theirs)
    for name, x in mine.items():
        y = theirs[name]
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y, err_msg=name)
            assert x.dtype == y.dtype, name
        else:
            assert x == y, name


def test_the_informative_depth_is_found_among_noise(made: tuple[Task, Any, Probe]) -> None:
    _, _, probe = made
    assert probe.reader.depth == INFORMATIVE
    assert {r.depth for chosen in probe.fold_readers for r in chosen} == {INFORMATIVE}
    assert probe.scores["accuracy"] > 0.7
    assert all(c.accuracy < 0.6 for c in probe.candidates if c.reader.depth != INFORMATIVE)


def test_every_depth_and_strength_is_a_candidate_and_the_chosen_has_the_least_loss_or_a_stronger_penalty(
    made: tuple[Task, Any, Probe],
) -> None:
    _, _, probe = made
    tried = [(c.reader.depth, c.reader.l2) for c in probe.candidates]
    assert tried == [(depth, l2) for depth in range(4) for l2 in CONFIG.l2]
    least = min(probe.candidates, key=lambda c: c.nll).reader
    assert probe.reader.depth == least.depth
    assert probe.reader.l2 >= least.l2


def test_row_order_of_the_task_plays_no_part(made: tuple[Task, Any, Probe]) -> None:
    task, states, probe = made
    mixed = np.random.default_rng(1).permutation(len(task.splits["train"]))
    assert (mixed != np.arange(len(mixed))).any()
    train = tuple(task.splits["train"][i] for i in mixed)
    same(fit_probes(states, replace(task, splits={**task.splits, "train": train}), config=CONFIG), probe)


def test_honest_word_on_a_row_ignores_the_answers_of_its_fold(
    made: tuple[Task, Any, Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, states, probe = made
    fold_of = dict(zip(probe.ids, probe.folds.tolist(), strict=True))
    # Other answers would be dealt into other folds; here the folds stay and the answers of fold 1 alone change.
    monkeypatch.setattr(
        "probekd.probes.fit.assign_folds", lambda rows, *_, **__: np.array([fold_of[e.id] for e in rows])
    )
    train = tuple(
        replace(e, answer=(e.answer + 1) % len(e.options)) if fold_of[e.id] == 1 and e.answer is not None else e
        for e in task.splits["train"]
    )
    changed = fit_probes(states, replace(task, splits={**task.splits, "train": train}), config=CONFIG)
    held, there = probe.folds == 1, np.isfinite(probe.honest)
    assert (changed.answers[held] != probe.answers[held]).all()
    assert changed.fold_readers[1] == probe.fold_readers[1]
    np.testing.assert_allclose(changed.honest[held], probe.honest[held], rtol=1e-3, atol=1e-3)
    others = there & ~held[:, None]
    assert np.abs(changed.honest[others] - probe.honest[others]).max() > 0.1


def test_absent_options_are_minus_infinity_in_the_honest_logits(made: tuple[Task, Any, Probe]) -> None:
    task, _, probe = made
    options = {e.id: len(e.options) for e in task.splits["train"]}
    assert np.isfinite(probe.honest).sum(1).tolist() == [options[i] for i in probe.ids]
    answers = {e.id: e.answer for e in task.splits["train"]}
    assert probe.answers.tolist() == [answers[i] for i in probe.ids]


def test_targets_are_honest_for_labelled_rows_and_pooled_for_the_rest(made: tuple[Task, Any, Probe]) -> None:
    task, states, probe = made
    targets = soft_labels(probe, states)
    train, pool = states.ids("any", "train"), states.ids("any", "unlabelled")
    assert targets.ids == (*train, *pool)
    assert targets.sources == ("oof",) * len(train) + ("pooled",) * len(pool)
    assert targets.splits == ("train",) * len(train) + ("unlabelled",) * len(pool)
    options = {e.id: len(e.options) for e in task.rows()}
    assert [len(row) for row in targets.logits] == [options[i] for i in targets.ids]
    place = {row_id: i for i, row_id in enumerate(probe.ids)}
    fit = only_fit(probe)
    for row_id, logits, probs, fold in zip(targets.ids, targets.logits, targets.probs, targets.folds, strict=True):
        assert probs.sum() == pytest.approx(1.0)
        if row_id in place:
            assert logits.tolist() == probe.honest[place[row_id]][: options[row_id]].tolist()
            assert fold == probe.folds[place[row_id]]
        else:
            x = states.read(probe.reader.layout, probe.reader.position, probe.reader.depth, [row_id])[0]
            by_fold = [(x @ w + b).ravel() for w, b in zip(fit.weight.numpy(), fit.bias.numpy(), strict=True)]
            expected = np.mean(by_fold, axis=0)[: options[row_id]]
            assert probe.calibration.kind == "temperature"
            expected = expected * probe.calibration.scale[0] * probe.sharpness / probe.flattery
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
            assert fold == -1


def test_each_honest_row_comes_from_the_model_that_left_its_fold_out(made: tuple[Task, Any, Probe]) -> None:
    task, states, _ = made
    probe = fit_probes(states, task, config=CONFIG.model_copy(update={"l2": (0.3,), "depths": (INFORMATIVE,)}))
    x = states.read(probe.reader.layout, probe.reader.position, probe.reader.depth, probe.ids)
    checked = 0
    for f in range(3):
        assert probe.fold_readers[f] == (probe.reader,)
        held = probe.folds == f
        weight, bias = only_fit(probe).weight[f].numpy(), only_fit(probe).bias[f].numpy()
        scores = x[held] @ weight
        scores = scores[..., 0] + bias if x.ndim == 3 else scores + bias
        for honest, raw in zip(probe.honest[held], scores, strict=True):
            k = np.isfinite(honest).sum()
            # Equal up to the fold's own temperature and a constant, so as centred directions.
            a, b = honest[:k] - honest[:k].mean(), raw[:k] - raw[:k].mean()
            assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1.0, abs=1e-3)
            checked += 1
    assert checked == 48


def test_in_sample_word_would_have_been_more_flattering(fake_states: Build) -> None:
    generator = np.random.default_rng(0)
    task = task_of("classification", n=45, pool=0)
    train = tuple(replace(e, answer=int(generator.integers(3))) for e in task.splits["train"])
    task = replace(task, splits={"train": train})
    held = {e.id: generator.normal(size=200).astype(np.float32) for e in train}
    states = fake_states(
        splits={"train": [e.id for e in train]},
        values={("listed", "answer", 0): held},
        columns={"listed": {"num_options": dict.fromkeys(held, 3)}},
    )
    probe = fit_probes(states, task, config=CONFIG)
    in_sample = [int(row.argmax()) for row in probe.logits(states, probe.ids)]
    assert (np.array(in_sample) == probe.answers).mean() > 0.95
    assert probe.scores["accuracy"] < 0.55


def test_a_pool_row_may_have_more_options_than_any_labelled_row(fake_states: Build) -> None:
    task = task_of("classification")
    states = states_of(task, fake_states)
    counts = states.columns["listed"]["num_options"]
    probe = fit_probes(states, task, config=CONFIG)
    known = probe.logits(states, ["unlabelled-0", "unlabelled-1"])
    wider = replace(states, columns={"listed": {"num_options": {**counts, "unlabelled-0": 5}}})
    found = probe.logits(wider, ["unlabelled-0", "unlabelled-1"])
    assert found[0][:3].tolist() == known[0].tolist()
    # Two classes that never came up in 48 rows share what one would get; all the others came up more than once.
    assert scipy_softmax(found[0])[3:] == pytest.approx([1 / 100] * 2, rel=0.05)
    assert found[1].tolist() == known[1].tolist()


def test_a_train_row_that_the_probe_does_not_know_is_an_error(made: tuple[Task, Any, Probe]) -> None:
    _, states, probe = made
    other = replace(states, splits={**states.splits, "train": [*states.splits["train"], "zebra"]})
    with pytest.raises(DataError, match="1 train rows, such as 'zebra'"):
        soft_labels(probe, other)


def test_states_of_another_teacher_are_refused(made: tuple[Task, Any, Probe]) -> None:
    _, states, probe = made
    other = replace(states, teacher={**states.teacher, "name": "a stranger", "fingerprint": "f2"})
    with pytest.raises(StoreError, match="a stranger, the probe was trained on a teacher"):
        probe.logits(other, ["unlabelled-0"])


def test_answer_states_of_several_orders_are_not_taken_for_options(made: tuple[Task, Any, Probe]) -> None:
    task, states, probe = made
    several = replace(states, orders=3)
    if probe.reader.position == "option_end":  # means over the orders: read as ever
        same(fit_probes(several, task, config=CONFIG), probe)
        return
    with pytest.raises(DataError, match=r"with prompt\.permutations, the answer position is not read"):
        fit_probes(several, task, config=CONFIG)


def test_a_config_that_admits_no_states_is_refused(made: tuple[Task, Any, Probe]) -> None:
    task, states, _ = made
    with pytest.raises(DataError, match=r"widen probe\.positions, probe\.depths or probe\.families"):
        fit_probes(states, task, config=CONFIG.model_copy(update={"depths": (9,)}))


def test_only_the_depths_and_positions_of_the_config_are_tried(made: tuple[Task, Any, Probe]) -> None:
    task, states, _ = made
    only = fit_probes(states, task, config=CONFIG.model_copy(update={"depths": (0, 3)}))
    assert {c.reader.depth for c in only.candidates} == {0, 3}
    with pytest.raises(DataError, match="admits none"):
        fit_probes(states, task, config=CONFIG.model_copy(update={"positions": ("option_mean",)}))


def test_unlabelled_train_rows_take_no_part(made: tuple[Task, Any, Probe]) -> None:
    task, states, probe = made
    extra = replace(task.splits["train"][0], id="unlabelled-0", question="Another?", answer=None)
    more = replace(task, splits={**task.splits, "train": (*task.splits["train"], extra)})
    same(fit_probes(states, more, config=CONFIG), probe)


def test_a_saved_probe_is_the_same_probe(made: tuple[Task, Any, Probe], tmp_path: Path) -> None:
    _, states, probe = made
    probe.save(tmp_path / "probes")
    loaded = Probe.load(tmp_path / "probes")
    same(loaded, probe)
    pool = states.ids("any", "unlabelled")
    for a, b in zip(probe.logits(states, pool), loaded.logits(states, pool), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saved_files_hold_what_the_contract_names(made: tuple[Task, Any, Probe], tmp_path: Path) -> None:
    _, _, probe = made
    probe.save(tmp_path, {"control": 0.3})
    with (tmp_path / "depths.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert {"position", "depth", "kind", "l2", "accuracy", "nll", "ece"} <= set(table[0])
    assert [float(row["nll"]) for row in table] == [c.nll for c in probe.candidates]
    meta = json.loads((tmp_path / "probe.json").read_text())
    chosen = next(c for c in probe.candidates if c.reader == probe.reader)
    # The candidate's own loss, but for the precision that its temperature was fitted in.
    assert meta["optimism"]["chosen_nll"] == pytest.approx(chosen.nll, rel=2e-5, abs=1e-9)
    assert meta["optimism"] == {
        "chosen_nll": probe.where_chosen["nll"],
        "outside_nll": probe.scores["nll"],
        "chosen_accuracy": chosen.accuracy,
        "outside_accuracy": probe.scores["accuracy"],
    }
    assert (meta["control"], meta["folds"], meta["labelled"]) == (0.3, 3, len(probe.ids))


def test_a_probe_of_another_format_is_refused(made: tuple[Task, Any, Probe], tmp_path: Path) -> None:
    made[2].save(tmp_path)
    meta = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(StoreError, match=r"probe\.json: written by another version \(format 99, this is 4\)"):
        Probe.load(tmp_path)


def test_scores_are_those_of_the_honest_distributions(made: tuple[Task, Any, Probe]) -> None:
    _, _, probe = made
    for honest, probs in zip(probe.honest, probe.out_of_fold, strict=True):
        np.testing.assert_allclose(probs, scipy_softmax(honest[np.isfinite(honest)]), rtol=1e-9)
    hits = [int(p.argmax()) == a for p, a in zip(probe.out_of_fold, probe.answers, strict=True)]
    assert probe.scores["accuracy"] == pytest.approx(np.mean(hits))


def test_shuffled_labels_leave_nothing_to_read(made: tuple[Task, Any, Probe]) -> None:
    task, states, probe = made
    by_id = {e.id: e for e in task.splits["train"]}
    examples = [by_id[i] for i in probe.ids]
    found = [fit_shuffled(probe, states, examples, config=CONFIG, seed=s)["accuracy"] for s in range(5)]
    chance = np.mean([1 / len(e.options) for e in examples])
    assert np.mean(found) < chance + 0.12
    assert np.mean(found) < probe.scores["accuracy"] - 0.25


def test_presence_marks_each_rows_own_options() -> None:
    examples = [Example(id=str(k), question="?", options=tuple("abcde"[:k])) for k in (3, 5, 4)]
    assert presence(examples, 5).sum(1).tolist() == [3, 5, 4]
    assert presence(examples, 5)[0].tolist() == [True, True, True, False, False]


def test_a_stack_wants_a_best_reader_that_knows_something() -> None:
    draw = np.random.default_rng(0)
    answers = draw.integers(4, size=200)
    folds = np.arange(200) % 5
    knows = 2.0 * np.eye(4)[answers] + draw.normal(size=(200, 4))
    other = 2.0 * np.eye(4)[answers] + draw.normal(size=(200, 4))
    chance = draw.normal(size=(200, 4))
    reader = Reader(layout="listed", position="answer", depth=0, l2=0.1)

    def weights(best: np.ndarray, other: np.ndarray) -> dict[Any, float]:
        said = {reader: best, "words": other}
        return dict(stack_or_single(said, answers, folds, np.zeros(best.shape)).weights)

    assert len(weights(knows, other)) == 2
    assert weights(chance, other) == {reader: 1.0}
    assert weights(knows, chance) == {reader: 1.0}


def test_a_reader_near_chance_is_not_made_surer_than_one_of_its_models(fake_states: Build) -> None:
    task = task_of("classification")
    draw = np.random.default_rng(3)
    train = [e.id for e in task.rows("train")]
    states = fake_states(
        splits={"train": train},
        values={("listed", "answer", 0): {row_id: draw.normal(size=6) for row_id in train}},
        columns={"listed": {"num_options": {e.id: len(e.options) for e in task.rows("train")}}},
    )
    probe = fit_probes(states, task, config=ProbeConfig(l2=(1.0,), folds=3, windows=(1,), stack=False))
    assert probe.sharpness == 1.0


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["classification", "multiple_choice"])
def test_states_that_are_not_finite_are_named(kind: str, number: float, fake_states: Build) -> None:
    task = task_of(kind)
    states = states_of(task, fake_states)
    (layout, position, _), held = list(states.values.items())[INFORMATIVE]
    held["train-5"] = np.where(np.arange(WIDTH) == 1, number, held["train-5"]).astype(np.float32)
    with pytest.raises(DataError, match=rf"{layout} states at {position}, depth 2: that of row 'train-5' holds NaN"):
        fit_probes(states, task, config=CONFIG)
