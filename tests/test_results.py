"""Every figure of the README's and the docs' tables comes from a committed results file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import make_results


@pytest.mark.parametrize("page", make_results.PAGES, ids=lambda path: path.name)
def test_a_page_agrees_with_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"<!-- results:([\w.]+) -->", text)
    assert make_results.fill(text, make_results.committed()) == text


def test_a_changed_figure_is_noticed() -> None:
    results = make_results.committed()
    results["quickstart"]["metrics"]["test"]["probe"]["accuracy"] = 0.123
    assert "0.123" in make_results.fill(make_results.PAGES[0].read_text(encoding="utf-8"), results)


def test_a_changed_cell_of_the_study_is_noticed() -> None:
    results = make_results.committed()
    results["readers"]["rows"][0]["chosen.held_out.nll"] = 9.87
    text = make_results.fill(make_results.PAGES[1].read_text(encoding="utf-8"), results)
    assert text.count("9.87") == 1
