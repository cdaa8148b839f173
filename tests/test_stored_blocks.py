from __future__ import annotations

import numpy as np
import pytest

from probekd import states as stored
from probekd.extraction import extract
from probekd.probes.features import Features
from probekd.tasks.base import Task
from probekd.teacher.load import Teacher


@pytest.mark.parametrize("size", [1, 300, 2**26])
def test_blocks_hold_what_one_read_does(
    size: int, llama: Teacher, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = extract(llama, choices)
    monkeypatch.setattr(stored, "BLOCK_BYTES", size)
    ids = [e.id for e in choices.rows()][::-1]
    for layout in states.layouts:
        for position in states.positions(layout):
            for depth in states.depths(layout):
                blocks = states.blocks(layout, position, depth, ids)
                whole = states.read(layout, position, depth, ids)
                found = np.zeros(blocks.shape, dtype=np.float32)
                places = []
                for rows, block in blocks.blocks():
                    assert block.dtype == np.float32
                    found[rows] = block
                    places += list(range(rows.start, rows.stop))
                assert places == list(range(len(ids)))
                if whole.ndim == 3:
                    assert blocks.shape[1] >= whole.shape[1] and (found[:, whole.shape[1] :] == 0).all()
                    found = found[:, : whole.shape[1]]
                np.testing.assert_array_equal(found, whole)


def test_stored_order_follows_content_and_loses_no_row(llama: Teacher, choices: Task) -> None:
    states = extract(llama, choices)
    layout = states.layouts[0]
    ids = [e.id for e in choices.rows()]
    ordered = states.in_stored_order(layout, ids)
    assert sorted(ordered) == sorted(ids)
    draw = np.random.default_rng(0)
    for _ in range(3):
        assert states.in_stored_order(layout, [ids[i] for i in draw.permutation(len(ids))]) == ordered
    held = [i for store in states.stores if store.layout == layout for i in store.index["id"]]
    assert ordered == [i for i in held if i in set(ids)]


def test_features_of_blocks_are_those_of_the_array(
    llama: Teacher, choices: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = extract(llama, choices)
    ids = [e.id for e in choices.rows()]
    position = states.positions("branched")[0]
    whole = states.read("branched", position, 1, ids)
    counts = np.array(states.column("branched", "num_options", ids))
    present = np.arange(counts.max()) < counts[:, None]
    monkeypatch.setattr(stored, "BLOCK_BYTES", 300)
    one, two = Features(whole, present), Features(states.blocks("branched", position, 1, ids), present)
    np.testing.assert_allclose(one.centre, two.centre, rtol=1e-6)
    np.testing.assert_allclose(
        np.concatenate([b for _, b in one.blocks()]), np.concatenate([b for _, b in two.blocks()]), rtol=1e-5, atol=1e-6
    )
