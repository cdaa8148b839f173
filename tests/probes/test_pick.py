from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import log_softmax

from probekd.config import ProbeConfig
from probekd.probes.fit import fit_probes
from probekd.tasks.base import Example, Task

Build = Callable[..., Any]


def noise_read(seed: int, build: Build) -> tuple[float, float]:
    """Log-loss on rows to come of a probe of noise, as it is and without what the nested predictions asked for."""
    generator = np.random.default_rng(seed)
    rows = [Example(id=f"r{i:03}", question=f"{i}?", options=("a", "b", "c", "d"), answer=i % 4) for i in range(100)]
    pool = [Example(id=f"p{i:03}", question=f"pool {i}?", options=("a", "b", "c", "d")) for i in range(300)]
    ids = {"train": [e.id for e in rows], "unlabelled": [e.id for e in pool]}
    values = {
        ("listed", "answer", depth): {
            i: generator.normal(size=20).astype(np.float32) for split in ids.values() for i in split
        }
        for depth in range(12)
    }
    columns = {"listed": {"num_options": dict.fromkeys([i for split in ids.values() for i in split], 4)}}
    states = build(splits=ids, values=values, columns=columns)
    splits = {"train": tuple(rows), "unlabelled": tuple(pool)}
    config = ProbeConfig(l2=(0.01, 0.1), folds=5, windows=(1,), stack=False)
    probe = fit_probes(states, Task(name="t", kind="multiple_choice", splits=splits), config=config)
    # Of rows to come every answer is as likely: their log-loss is the mean over the options.
    said = np.stack(probe.logits(states, ids["unlabelled"]))
    flattered = np.stack(replace(probe, flattery=1.0).logits(states, ids["unlabelled"]))
    found, believed = (float(-log_softmax(z, axis=1).mean()) for z in (said, flattered))
    return found, believed


def test_a_probe_of_noise_says_little_of_rows_to_come(fake_states: Build) -> None:
    found, believed = np.array([noise_read(seed, fake_states) for seed in range(4)]).T - np.log(4)
    assert (found <= believed).all()
    assert (found < 0.1 * believed).sum() >= 3  # nested predictions are lucky now and then
