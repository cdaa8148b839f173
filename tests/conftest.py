"""Fixtures that every room's tests share: a states cache of their own, tiny teachers, two small mixed tasks."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fake_states import FakeStates
from tiny import choice_row, save_model

from probekd.config import PromptConfig, TeacherConfig
from probekd.tasks.base import Example, Task
from probekd.teacher.load import Teacher, load_teacher


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one of them would keep a single worker busy when all else is done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def light_collections() -> None:
    """Leave what is there for good out of garbage collections: a training asks for one, which takes a quarter of a second."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Session fixtures load teachers too, and must not write to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBEKD_CACHE", str(tmp_path_factory.mktemp("session-cache")))
        yield


@pytest.fixture(autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty states cache for each test."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PROBEKD_CACHE", str(directory))
    return directory


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Directory of a family's model, built once."""
    return cache(lambda family: save_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="session")
def teacher_of(model_dir: Callable[[str], Path]) -> Callable[[str], Teacher]:
    """A family's model loaded as a teacher, once; small batches, so that one task fills several."""
    return cache(lambda family: load_teacher(TeacherConfig(model=str(model_dir(family)), batch_tokens=200)))


@pytest.fixture
def llama(teacher_of: Callable[[str], Teacher]) -> Teacher:
    return teacher_of("llama")


@pytest.fixture
def one_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrations are plain temperatures, so that what is calibrated is a multiple of what was not."""
    from probekd.probes import calibrate

    for room in ("choose", "pick"):
        monkeypatch.setattr(
            f"probekd.probes.{room}.calibrate", lambda z, answers, *_, **__: calibrate.one_temperature(z, answers)
        )


@pytest.fixture
def fake_states() -> Callable[..., Any]:
    return FakeStates


@pytest.fixture
def choices() -> Task:
    """Multiple choice: 3 to 5 options, questions and options of very different lengths."""
    train = (
        choice_row("a", "What does a cow eat?", "grass", "stones", "light"),
        choice_row("b", "Which of these is a tool?", "soup", "hammer", "the old horse", "rice", "cloud", answer=1),
        choice_row(
            "c", "Where does the sun rise, seen from here on the old red hill?", "in the east", "here", "east", "no"
        ),
        choice_row("d", "Is it?", "yes it is, and it always was so", "no", "42", "é ß 漢", answer=None),
    )
    test = (choice_row("e", "Why?", "light", "rice", "a", answer=2),)
    return Task(name="choices", kind="multiple_choice", splits={"train": train, "test": test})


@pytest.fixture
def kinds_of_text() -> Task:
    """Classification of short texts into three labels."""
    labels = ("animal", "tool", "food")
    texts = ("the red cow", "an old hammer is here, and a new one", "soup", "a horse eats grass")
    rows = tuple(Example(id=f"k{i}", question=t, options=labels, answer=i % 3) for i, t in enumerate(texts))
    return Task(name="kinds", kind="classification", splits={"train": rows}, labels=labels)


@pytest.fixture
def chat_prompt() -> PromptConfig:
    return PromptConfig(chat=True, system="Be brief.")
