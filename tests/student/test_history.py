from __future__ import annotations

import pytest

from probekd.student.history import Epoch, best_epoch, has_stopped_gaining, mean_loss


def history(*log_losses: float | None) -> list[Epoch]:
    return [
        Epoch(epoch=i + 1, steps=10 * (i + 1), loss=1 / (i + 1), log_loss=value) for i, value in enumerate(log_losses)
    ]


def test_the_best_epoch_is_the_first_of_the_lowest_log_losses() -> None:
    assert best_epoch(history(0.9, 0.7, 0.8, 0.7)) == 1


def test_the_last_epoch_is_the_best_where_nothing_was_held_out() -> None:
    assert best_epoch(history(None, None, None)) == 2


@pytest.mark.parametrize(
    ("log_losses", "stops"),
    [((0.9,), False), ((0.9, 1.0), False), ((0.9, 1.0, 0.95), True), ((0.9, 1.0, 0.8), False), ((1, 0.9, 2, 2), True)],
)
def test_training_stops_so_many_epochs_after_the_best(log_losses: tuple[float, ...], stops: bool) -> None:
    assert has_stopped_gaining(history(*log_losses), patience=2) == stops


def test_the_mean_loss_weighs_epochs_by_their_steps() -> None:
    half = [Epoch(epoch=1, steps=10, loss=2.0), Epoch(epoch=1.5, steps=15, loss=5.0)]
    assert mean_loss(half) == pytest.approx((10 * 2 + 5 * 5) / 15)
