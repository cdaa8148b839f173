"""Questions for the tests of studies on a tiny teacher."""

from __future__ import annotations

from probekd.tasks.base import Example


def questions(split: str, n: int) -> tuple[Example, ...]:
    """Answered multiple choice of three or four options."""
    return tuple(
        Example(
            id=f"{split}-{i}",
            question=f"Which of them is number {i} of {split}?",
            options=tuple(f"the {w} {i}" for w in ("cow", "saw", "hen", "cake")[: 3 + i % 2]),
            answer=i % 3,
        )
        for i in range(n)
    )
