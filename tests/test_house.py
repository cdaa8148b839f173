"""The rules of the house: data flows one way, and nothing unpickles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import probekd

SOURCE = Path(probekd.__file__).parent
ANYWHERE = ("errors", "config", "files", "progress", "metrics")
ROOMS = (
    "tasks",
    "prompts",
    "teacher",
    "states",
    "extraction",
    "probes",
    "doctor",
    "targets",
    "methods",
    "student",
    "dataset",
    "evaluation",
    "report",
    "dataset",
    "rundir",
    "supervision",
    "stages",
    "run",
    "cascade",
    "study",
)
# Targets are what probes make, and know nothing of them: the one room that probes may look down to.
ALLOWED = {("probes", "targets")}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    return {name.split(".")[1] for name in names if name.startswith("probekd.")}


@pytest.mark.parametrize("path", [f for f in FILES if room_of(f) in ROOMS], ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_above_it(path: Path) -> None:
    room = room_of(path)
    for other in imported_rooms(path) - {room, *ANYWHERE}:
        assert other in ROOMS, f"{room} imports {other}, which is no room below it"
        assert ROOMS.index(other) < ROOMS.index(room) or (room, other) in ALLOWED, f"{room} imports {other} from below"


@pytest.mark.parametrize("path", FILES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {a.name for a in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "dill", "joblib", "cloudpickle"}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "yaml.load", "pickle.load")


def test_no_file_is_too_long_to_read() -> None:
    long = {
        str(f.relative_to(SOURCE)): n for f in FILES if (n := len(f.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
