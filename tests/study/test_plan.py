from __future__ import annotations

from collections.abc import Callable

from probekd.study.config import StudyConfig
from probekd.study.plan import cells, draws

Build = Callable[..., StudyConfig]


def test_budgets_that_a_task_has_not_are_left_out_and_seeds_come_last_to_repeat(tiny_study: Build) -> None:
    study = tiny_study(budgets=[24, 12, 100], seeds=[3, 1])
    found = [(d.seed, d.task, d.budget) for d in draws(study, {"texts": 40, "choices": 20})]
    assert found == [
        (3, "texts", 12),
        (3, "texts", 24),
        (3, "choices", 12),
        (1, "texts", 12),
        (1, "texts", 24),
        (1, "choices", 12),
    ]


def test_each_method_has_the_pools_that_it_can_use(tiny_study: Build) -> None:
    study = tiny_study(methods=["labels", "probe-kd", "self-train"], pool=[0, 5, "all"])
    draw = next(draws(study, {"texts": 40, "choices": 40}))
    found = [(c.student and "s", c.method, c.pool) for c in cells(study, draw, pool_rows=28)]
    assert found == [
        ("", "teacher_output", 0),
        ("", "probe", 0),
        ("s", "labels", 0),
        ("s", "probe-kd", 0),
        ("s", "probe-kd", 5),
        ("s", "probe-kd", "all"),
        ("s", "self-train", 5),
        ("s", "self-train", "all"),
    ]
    without = [(c.method, c.pool) for c in cells(study, draw, pool_rows=0) if c.student]
    assert without == [("labels", 0), ("probe-kd", 0)]  # everything is labelled
    names = {c.name for c in cells(study, draw, pool_rows=28)}
    assert len(names) == 8 and all(
        set(n) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") for n in names
    )
