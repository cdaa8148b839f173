from __future__ import annotations

import pytest
import torch
from torch import Tensor

from probekd.probes.lbfgs import minimise


def quadratics(number: int, size: int, spread: float) -> tuple[Tensor, Tensor]:
    """Positive definite matrices with condition numbers up to ``spread``, and right-hand sides."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(number, size, size, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(0, torch.log10(torch.tensor(spread)).item(), size, dtype=torch.float64)
    return (q * eigenvalues) @ q.mT, torch.randn(number, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_quadratics_end_at_the_solution_of_their_equations(spread: float) -> None:
    a, b = quadratics(7, 12, spread)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        product = (a[which] @ x[:, :, None]).squeeze(2)
        return 0.5 * (x * product).sum(1) - (x * b[which]).sum(1), product - b[which]

    found = minimise(objective, torch.zeros(7, 12, dtype=torch.float64), tolerance=1e-9)
    torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-7)


def test_a_guess_need_not_be_of_the_right_size() -> None:
    """The last step tells it: a guess a hundred times too large or small takes hardly more than the same one in its size."""
    a, b = quadratics(7, 12, 1e3)
    near = a + 0.3 * torch.diag_embed(torch.diagonal(a, dim1=1, dim2=2))

    def evaluations(factor: float) -> int:
        evaluated = []

        def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            evaluated.append(len(which))
            product = (a[which] @ x[:, :, None]).squeeze(2)
            return 0.5 * (x * product).sum(1) - (x * b[which]).sum(1), product - b[which]

        found = minimise(
            objective,
            torch.zeros(7, 12, dtype=torch.float64),
            tolerance=1e-9,
            precondition=lambda v, which: factor * torch.linalg.solve(near[which], v),
        )
        torch.testing.assert_close(found, torch.linalg.solve(a, b), rtol=1e-6, atol=1e-7)
        return sum(evaluated)

    assert max(evaluations(0.01), evaluations(100.0)) <= 1.5 * evaluations(1.0)


def softplus_sum(scale: Tensor) -> object:
    """Strongly convex as a probe with its l2, not quadratic; of different steepness, so they need different steps."""

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        s = scale[which, None]
        loss = (torch.nn.functional.softplus(s * x) + torch.nn.functional.softplus(-3 * x)).sum(1)
        loss = loss + 0.005 * (x**2).sum(1)
        return loss, s * torch.sigmoid(s * x) - 3 * torch.sigmoid(-3 * x) + 0.01 * x

    return objective


@pytest.mark.parametrize("tolerance", [1e-1, 1e-8])  # stopped early, paths would differ that end at one minimum
def test_a_batch_gives_what_each_problem_gives_alone(tolerance: float) -> None:
    scale = torch.logspace(-2, 2, 9, dtype=torch.float64)
    start = torch.linspace(-5, 5, 36, dtype=torch.float64).view(9, 4)
    together = minimise(softplus_sum(scale), start, tolerance=tolerance)
    for i in range(9):
        alone = minimise(softplus_sum(scale[i : i + 1]), start[i : i + 1], tolerance=tolerance)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)
        first, last = (
            softplus_sum(scale[i : i + 1])(x, torch.tensor([0]))[1].norm() for x in (start[i : i + 1], alone)
        )
        assert float(last) <= tolerance * float(first)


def test_a_problem_that_starts_at_its_minimum_stays_there() -> None:
    target = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * ((x - target[which]) ** 2).sum(1), x - target[which]

    start = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    found = minimise(objective, start, tolerance=1e-10)
    torch.testing.assert_close(found, target)
    assert torch.equal(start, torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64))


def test_it_stops_when_told() -> None:
    calls: list[int] = []

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(which))
        return (x**4).sum(1), 4 * x**3

    minimise(objective, torch.ones(1, 3, dtype=torch.float64), tolerance=1e-300, max_iterations=5)
    assert len(calls) <= 5 * 31 + 1
    calls.clear()
    minimise(objective, torch.ones(1, 3, dtype=torch.float64), tolerance=1e-2)
    assert len(calls) < 20


def test_solved_problems_are_not_evaluated_again() -> None:
    evaluated: list[int] = []
    steep = torch.tensor([1.0, 1.0, 1.0, 1e3], dtype=torch.float64)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        evaluated.append(len(which))
        weights = torch.stack([torch.ones(4, dtype=torch.float64), steep], dim=1)[which]
        return 0.5 * (weights * (x - 1) ** 2).sum(1), weights * (x - 1)

    found = minimise(objective, torch.zeros(4, 2, dtype=torch.float64), tolerance=1e-10)
    torch.testing.assert_close(found, torch.ones(4, 2, dtype=torch.float64))
    assert evaluated[0] == 4 and evaluated[-1] == 1


def test_a_start_that_is_the_minimum_but_for_rounding_is_left_alone() -> None:
    calls: list[int] = []

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(which))
        return 1 + (0.5 * x**2 + 1e-13 * x).sum(1), x + 1e-13 + 1e-14 * torch.sin(1e15 * x)

    found = minimise(objective, torch.zeros(1, 3, dtype=torch.float64), tolerance=1e-6, floor=1e-9)
    assert (found == 0).all() and len(calls) < 50


def test_a_problem_that_rounding_keeps_from_its_tolerance_is_left_when_nothing_moves_it_on() -> None:
    looks = []
    generator = torch.Generator().manual_seed(0)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The second problem's loss is too large to show a change, and its gradient too rough to get short."""
        looks.append(len(which))
        rough = 1e-3 * torch.randn(x.shape, generator=generator)
        return 1e4 * which + 0.5 * (x**2).sum(1), x + which[:, None] * rough

    found = minimise(objective, torch.ones(2, 8), tolerance=1e-6, precondition=lambda v, _: v)
    assert float(found[0].norm()) <= 1e-6 * 8**0.5 and float(found[1].norm()) < 0.01
    assert len(looks) < 100


def test_a_problem_cut_off_at_the_last_iteration_is_told(caplog: pytest.LogCaptureFixture) -> None:
    a, b = quadratics(7, 12, 1e3)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        product = (a[which] @ x[:, :, None]).squeeze(2)
        return 0.5 * (x * product).sum(1) - (x * b[which]).sum(1), product - b[which]

    start = torch.zeros(7, 12, dtype=torch.float64)
    minimise(objective, start, tolerance=1e-9)
    assert not caplog.messages
    minimise(objective, start, tolerance=1e-9, max_iterations=3)
    assert caplog.messages == ["7 of 7 probe problems had not converged after 3 iterations"]
