from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from probekd.config import PromptConfig, TaskConfig
from probekd.errors import ConfigError, DataError
from probekd.prompts import PromptText
from probekd.tasks import BUILTIN, load_task, load_task_from_config, task_names
from probekd.tasks.base import Example, Task, check_task
from probekd.tasks.load import keep_subjects
from probekd.tasks.mmlu import PROMPT

COUNTS = {"a": 60, "b": 30, "c": 10}


def task_file(folder: Path, *, unanswered: int = 5, backwards: bool = False) -> Path:
    """100 labelled rows of three unequal classes, some without answer, 4 in the unlabelled split, 20 in test."""
    labelled = [(f"{label}{i}", f"text {label} {i}", label) for label, n in COUNTS.items() for i in range(n)]
    rows = {
        "train": [*labelled, *((f"u{i}", f"open {i}", "") for i in range(unanswered))],
        "unlabelled": [(f"p{i}", f"pool {i}", "a") for i in range(4)],
        "test": [(f"t{i}", f"test {i}", "b") for i in range(20)],
    }
    for split, lines in rows.items():
        text = "".join(f"{','.join(line)}\n" for line in (reversed(lines) if backwards else lines))
        (folder / f"{split}.csv").write_text("id,question,answer\n" + text)
    path = folder / "task.yaml"
    data = ", ".join(f"{split}: {split}.csv" for split in rows)
    path.write_text(f"name: mine\nkind: classification\nlabels: [a, b, c]\ndata: {{{data}}}\n")
    return path


def ids(task: Task, split: str) -> set[str]:
    return {e.id for e in task.rows(split)}


def test_no_budget_keeps_every_label(tmp_path: Path) -> None:
    task = load_task(task_file(tmp_path))
    assert len(task.rows("train")) == 100
    assert ids(task, "unlabelled") == {f"p{i}" for i in range(4)} | {f"u{i}" for i in range(5)}


@pytest.mark.parametrize("labels", [10, 20, 50])
def test_budget_is_stratified(tmp_path: Path, labels: int) -> None:
    task = load_task(task_file(tmp_path), labels=labels)
    found = Counter(e.answer for e in task.rows("train"))
    assert found == {0: labels * 6 // 10, 1: labels * 3 // 10, 2: labels // 10}


def test_budgets_are_nested(tmp_path: Path) -> None:
    path = task_file(tmp_path)
    subsets = [ids(load_task(path, labels=n, seed=3), "train") for n in (7, 20, 21, 90)]
    assert all(small < large for small, large in pairwise(subsets))


def test_budget_depends_on_the_seed_but_not_on_the_order_of_rows(tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    forth, back = task_file(tmp_path), task_file(tmp_path / "back", backwards=True)
    first = load_task(forth, labels=20, pool=30, limit={"test": 7}, seed=1)
    for split in ("train", "test", "unlabelled"):
        assert ids(first, split) == ids(load_task(back, labels=20, pool=30, limit={"test": 7}, seed=1), split)
        assert ids(first, split) != ids(load_task(forth, labels=20, pool=30, limit={"test": 7}, seed=2), split)


def test_a_limited_pool_is_no_beginning_of_a_file(tmp_path: Path) -> None:
    """A file may be sorted by topic."""
    rows = [Example(id=f"u{i}", question=f"text {i}", options=("a", "b")) for i in range(200)]
    train = tuple(Example(id=f"t{i}", question=f"row {i}", options=("a", "b"), answer=i % 2) for i in range(10))
    for order in (rows, rows[::-1]):
        task = Task(
            name="t", kind="classification", splits={"train": train, "unlabelled": tuple(order)}, labels=("a", "b")
        )
        drawn = [int(e.id[1:]) for e in task.budget(labels=10, pool=50, seed=3).rows("unlabelled")]
        assert drawn == [int(e.id[1:]) for e in task.budget(labels=10, pool=60, seed=3).rows("unlabelled")][:50]
        assert 70 < sum(drawn) / 50 < 130


def test_the_pool_has_no_answers_and_all_the_rest(tmp_path: Path) -> None:
    task = load_task(task_file(tmp_path), labels=20)
    pool = task.rows("unlabelled")
    assert len(pool) == 4 + 5 + 80
    assert {e.answer for e in pool} == {None}
    assert not ids(task, "train") & ids(task, "unlabelled")
    assert all(e.answer is not None for e in task.rows("train"))


def test_pool_size_is_kept_and_none_at_all_is_possible(tmp_path: Path) -> None:
    path = task_file(tmp_path)
    assert len(load_task(path, labels=20, pool=6).rows("unlabelled")) == 6
    assert "unlabelled" not in load_task(path, labels=20, pool=0).splits


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"labels": 101}, "101 labels asked for, but train has 100 labelled rows"),
        ({"labels": 90, "pool": 20}, "a pool of 20 rows asked for, but 19 are left"),
        ({"limit": {"tset": 3}}, "task.limit names the split 'tset'"),
    ],
)
def test_more_than_there_is(tmp_path: Path, options: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        load_task(task_file(tmp_path), **options)  # type: ignore[arg-type]


def test_config_leads_to_the_same_task_and_its_prompt_wins(tmp_path: Path) -> None:
    path = task_file(tmp_path)
    config = TaskConfig(name=str(path), labels=20, pool=6, limit={"test": 7})
    direct = load_task(path, labels=20, pool=6, limit={"test": 7}, seed=4)
    assert load_task_from_config(config, prompt=None, seed=4) == direct
    prompt = PromptConfig(template="{{ question }} is")
    changed = load_task_from_config(config, prompt=prompt, seed=4).prompt
    assert changed == direct.prompt.model_copy(update={"template": prompt.template})
    shots = load_task_from_config(config, prompt=PromptConfig(shots=2), seed=4).prompt
    assert (shots.shots, shots.template, shots.instruction) == (2, direct.prompt.template, direct.prompt.instruction)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("arc_esay", "no built-in task 'arc_esay'; did you mean 'arc_easy'? The path of a task file (.yaml) works too"),
        ("train.csv", "The path of a task file (.yaml) works too"),
        ("none.yaml", "none.yaml: no such file"),
    ],
)
def test_unknown_name(name: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(name)
    assert expected in str(caught.value)


def test_registry_describes_every_task_in_a_line() -> None:
    assert task_names() == tuple(BUILTIN)
    for name, builtin in BUILTIN.items():
        assert builtin.name == name
        assert builtin.description and "\n" not in builtin.description


@pytest.mark.parametrize(("name", "options"), [("wordnet_kinds", None), ("wordnet_which", 4)])
def test_tasks_that_ship_with_the_package(name: str, options: int | None) -> None:
    task = load_task(name)
    assert task.kind == BUILTIN[name].kind
    assert set(task.splits) == {"train", "validation", "test"}
    assert {len(e.options) for e in task.rows()} == {options or len(task.labels)}
    assert all(e.answer is not None for e in task.rows())
    assert task.notes == ()


def test_subjects() -> None:
    def row(name: str, subject: str) -> Example:
        return Example(id=name, question=name, options=("x", "y"), answer=0, subject=subject)

    splits = {"train": (row("a", "law"), row("b", "art")), "test": (row("c", "art"),), "dev": (row("d", "law"),)}
    task = Task(name="t", kind="multiple_choice", splits=splits)
    assert keep_subjects(task, ["art"]).splits == {"train": (splits["train"][1],), "test": splits["test"]}
    with pytest.raises(ConfigError, match=r"no subject 'arts'; did you mean 'art'\?"):
        keep_subjects(task, ["law", "arts"])
    with pytest.raises(ConfigError, match=r"rows have no subjects; remove task\.subjects"):
        load_task("wordnet_which", subjects=["law"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Example(id="a", question="q", options=("x", "y"))] * 2, "id 'a' occurs 2 times"),
        ([Example(id="a", question=" ", options=("x", "y"))], "split train, row 'a': the question is empty"),
        ([Example(id="a", question="q", options=("x",))], "1 option"),
        ([Example(id="a", question="q", options=("x", "x"))], "the option 'x' occurs twice"),
        ([Example(id="a", question="q", options=("x", ""))], "an option is empty"),
        ([Example(id="a", question="q", options=("x", "y"), answer=2)], "answer 2 is outside its 2 options"),
        ([Example(id="a", question="q", options=("x", "y"), answer=-1)], "answer -1 is outside"),
    ],
)
def test_tasks_built_in_python_are_checked(rows: list[Example], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        check_task(Task(name="t", kind="multiple_choice", splits={"train": tuple(rows)}))


def test_mmlu_prompt_as_published() -> None:
    def row(name: str, answer: int) -> Example:
        return Example(id=name, question=name, options=("3", "4"), answer=answer, subject="abstract_algebra")

    splits = {"dev": (row("1 + 2?", 0),), "train": (row("2 + 2?", 1),)}
    prompt = PROMPT.model_copy(update={"shots": 1})
    text = PromptText(Task(name="mmlu", kind="multiple_choice", splits=splits, prompt=prompt))
    assert text.text(splits["train"][0], "listed") == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "1 + 2?\nA. 3\nB. 4\nAnswer: A\n\n"
        "2 + 2?\nA. 3\nB. 4\nAnswer:"
    )


def test_wordnet_prompt_lists_the_kinds_before_the_word() -> None:
    task = load_task("wordnet_kinds")
    first = task.rows("test")[0]
    kinds = ", ".join(task.labels)
    assert PromptText(task).text(first, "listed") == f"Kinds: {kinds}.\n\nWord: {first.question}\nKind:"


def test_example_prompt_names_each_queue_once() -> None:
    task = load_task(Path(__file__).parents[2] / "examples" / "tickets" / "task.yaml")
    first = task.rows("test")[0]
    assert PromptText(task).text(first, "listed") == (
        "Each customer message belongs to one of these queues: account, billing, bug, shipping.\n\n"
        f"Message: {first.question}\nQueue:"
    )
