"""Every figure of the README's tables comes from a committed results file."""

from __future__ import annotations

import re

import make_results


def test_the_readme_agrees_with_the_results() -> None:
    readme = make_results.README.read_text(encoding="utf-8")
    names = re.findall(r"<!-- results:(\w+) -->", readme)
    assert names
    results = {name: make_results.json.loads((make_results.RESULTS / f"{name}.json").read_text()) for name in names}
    assert make_results.fill(readme, results) == readme


def test_a_changed_figure_is_noticed() -> None:
    readme = make_results.README.read_text(encoding="utf-8")
    name = re.findall(r"<!-- results:(\w+) -->", readme)[0]
    path = make_results.RESULTS / f"{name}.json"
    result = make_results.json.loads(path.read_text(encoding="utf-8"))
    result["metrics"]["test"]["probe"]["accuracy"] = 0.123
    assert "0.123" in make_results.fill(readme, {path.stem: result} | _others(path.stem))


def _others(but: str) -> dict[str, object]:
    files = [p for p in make_results.RESULTS.glob("*.json") if p.stem != but]
    return {p.stem: make_results.json.loads(p.read_text(encoding="utf-8")) for p in files}
