from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from workspace import LABELS, Workspace, workspace

from probekd import cli
from probekd.config import RunConfig, load_config
from probekd.extraction import survey_task
from probekd.tasks import task_names
from probekd.tasks.load import load_task_from_config
from probekd.teacher.load import load_teacher

VERBS = [
    "run",
    "extract",
    "probe",
    "label",
    "distill",
    "evaluate",
    "report",
    "predict",
    "export",
    "push",
    "study",
    "tasks",
    "estimate",
    "doctor",
    "schema",
]
HELP = [[], ["cache"], *([v] for v in VERBS), *(["cache", v] for v in ("ls", "verify", "gc"))]
STAGES = VERBS[1:7]
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))
SMALL = {"train": 18, "unlabelled": 6, "test": 9}

Call = Callable[..., tuple[int, str, str]]


def run_cli(
    patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["probekd", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process; gives exit status, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run_cli(monkeypatch, capsys, *arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, model_dir: Callable[[str], Path]) -> Iterator[Workspace]:
    """A finished tiny run and its cache."""
    from probekd.run import run_stages

    root = tmp_path_factory.mktemp("cli")
    made = workspace(root, "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBEKD_CACHE", str(root / "cache"))
        run_stages(made.load())
    yield made


@pytest.fixture
def warm(done: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The finished run, with its own cache in use."""
    monkeypatch.setenv("PROBEKD_CACHE", str(done.root / "cache"))
    return done


@pytest.mark.parametrize("verb", HELP, ids=" ".join)
def test_every_verb_has_help(call: Call, verb: list[str]) -> None:
    status, out, err = call(*verb, "--help")
    assert (status, err) == (0, "")
    usage = next(line for line in out.splitlines() if "Usage:" in line)
    assert f" {' '.join([*verb, '[OPTIONS]'])}" in usage
    assert "--help" in out


def test_help_names_every_verb(call: Call) -> None:
    out = call("--help")[1]
    assert all(f" {verb} " in out for verb in [*VERBS, "cache"])


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, probekd.cli as cli\n"
        "sys.argv = ['probekd', '--help']\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'sklearn', 'pyarrow', 'pydantic'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stderr.strip() == "loaded: []"


def test_unknown_verbs_and_missing_arguments_end_with_status_2(call: Call) -> None:
    assert call("runn")[0] == 2
    assert call("run")[0] == 2


def test_schema_is_the_schema_of_the_config(call: Call) -> None:
    schema = json.loads(call("schema")[1])
    assert schema == RunConfig.model_json_schema()
    assert set(schema["required"]) == {"task", "teacher", "student"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_satisfy_the_schema(call: Call, example: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(call("schema")[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(example.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError, match="'studnet' was unexpected"):
        jsonschema.validate({**yaml.safe_load(example.read_text()), "studnet": 1}, schema)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_load(example: Path) -> None:
    assert load_config(example).name == example.stem
    assert load_config(example, ["student.epochs=2"]).student.epochs == 2


def test_tasks_lists_the_built_in_ones(call: Call) -> None:
    listed = json.loads(call("tasks", "--json")[1])
    assert tuple(t["name"] for t in listed) == task_names()
    assert all(name in call("tasks")[1] for name in task_names())


def test_a_task_is_shown_with_three_prompts(call: Call) -> None:
    shown = json.loads(call("tasks", "wordnet_kinds", "--json")[1])
    assert len(shown["prompts"]) == 3
    assert all(p["gold"].strip() in shown["labels"] for p in shown["prompts"])
    status, out, _ = call("tasks", "wordnet_kinds")
    assert status == 0
    assert out.count("\n--- ") == 3 and out.count("[gold: ") == 3
    assert all(p["prompt"] in out for p in shown["prompts"])


def test_a_task_file_is_shown(call: Call, done: Workspace) -> None:
    shown = json.loads(call("tasks", done.root / "task.yaml", "--json")[1])
    assert shown["labels"] == list(LABELS)
    assert {k: v for k, v in shown["splits"].items()} == SMALL
    train = {r["id"]: r for r in done.rows["train"]}
    for p in shown["prompts"]:
        assert train[p["id"]]["question"] in p["prompt"]
        assert p["gold"].strip() == train[p["id"]]["answer"]


def test_run_prints_scores_and_where_the_report_is(call: Call, warm: Workspace) -> None:
    status, out, err = call("run", warm.path)
    assert status == 0
    metrics = json.loads((warm.run / "metrics.json").read_text())
    for who, scores in metrics["test"].items():
        assert f"{scores['accuracy']:.3f}" in out, who
    assert f"gate    {metrics['gate']['verdict']}" in out
    assert str(warm.run / "report.html") in out
    assert err.count("done before") == 6


def test_notes_say_what_data_hold_as_it_is(call: Call, warm: Workspace) -> None:
    record = json.loads((warm.run / "run.json").read_text())
    (warm.run / "run.json").write_text(json.dumps({**record, "notes": ["the labels [/INST], [red] and ok"]}))
    status, _, err = call("run", warm.path)
    assert status == 0 and "note the labels [/INST], [red] and ok" in err
    (warm.run / "run.json").write_text(json.dumps(record))


def test_run_takes_its_directory_for_its_config(call: Call, warm: Workspace) -> None:
    found = json.loads(call("run", warm.run, "--json")[1])
    assert found["run"] == str(warm.run)
    assert {k: v for k, v in found.items() if k not in ("run", "report")} == json.loads(
        (warm.run / "metrics.json").read_text()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_prints_json_and_text(call: Call, warm: Workspace, stage: str) -> None:
    status, out, _ = call(stage, warm.path, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["stage"], found["run"], found["status"]) == (stage, str(warm.run), "done")
    assert ("probe" in found) == (stage == "probe") and ("metrics" in found) == (stage == "evaluate")
    status, out, _ = call(stage, warm.path)
    assert status == 0 and out.strip()


def test_predict_gives_what_the_student_gives(call: Call, warm: Workspace, tmp_path: Path) -> None:
    from probekd.student import Student

    rows = warm.rows["test"]
    output = tmp_path / "out.csv"
    status, out, _ = call(
        "predict", warm.run / "student", "--input", warm.root / "test.csv", "--output", output, "--json"
    )
    assert (status, json.loads(out)) == (0, {"rows": len(rows), "output": str(output)})
    with output.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{k: r[k] for k in rows[0]} for r in written] == rows
    student = Student.load(warm.run / "student")
    task = load_task_from_config(warm.load().task, prompt=None, seed=0)
    expected = {
        e.id: LABELS[int(p.argmax())]
        for e, p in zip(task.rows("test"), student.predict_proba(task.rows("test")), strict=True)
    }
    added = [name for name in written[0] if name not in rows[0]]
    assert added
    assert {r["id"]: r[added[0]] for r in written} == expected
    status, _, err = call("predict", warm.run / "student", "--input", warm.root / "test.csv", "--output", output)
    assert status == 2 and "exists already" in err
    again = ["predict", warm.run / "student", "--input", warm.root / "test.csv", "--output", output, "--overwrite"]
    assert call(*again)[0] == 0


def test_cache_ls_verify_and_gc(call: Call, done: Workspace, cache_directory: Path, tmp_path: Path) -> None:
    assert call("cache", "verify")[:2] == (0, "every store is whole\n")
    assert call("extract", done.path, "--set", f"runs_dir={tmp_path}")[0] == 0
    (listed,) = json.loads(call("cache", "ls", "--json")[1])
    assert (listed["task"], listed["split"], listed["rows"]) == ("tiny", "train", SMALL["train"])
    assert listed["key"][:6] in call("cache", "ls")[1]
    assert json.loads(call("cache", "verify", "--json")[1]) == {}
    shard = cache_directory / "states" / listed["key"] / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    status, out, _ = call("cache", "verify")
    assert status == 1
    assert f"damaged: {listed['key']}: shard-00000.safetensors" in out and "1 damaged stores" in out
    status, out, _ = call("cache", "verify", "--json")
    assert (status, json.loads(out)) == (1, {listed["key"]: ["shard-00000.safetensors"]})
    assert json.loads(call("cache", "gc", "--keep", "20GB", "--json")[1]) == []
    # The run that read the states holds them.
    assert json.loads(call("cache", "gc", "--keep", "0", "--json")[1]) == []
    for manifest in tmp_path.rglob("manifest.json"):
        manifest.unlink()
    (removed,) = json.loads(call("cache", "gc", "--keep", "0", "--json")[1])
    assert removed["key"] == listed["key"] and not shard.exists()
    assert call("cache", "gc", "--keep", "0")[1] == "0 stores removed, 0.0 MB freed\n"


@pytest.mark.parametrize(
    ("kind", "orders"), [("classification", 1), ("multiple_choice", 1), ("multiple_choice", 4)], ids=str
)
def test_estimate_counts_what_extract_reads(
    call: Call, tmp_path: Path, model_dir: Callable[[str], Path], kind: str, orders: int
) -> None:
    made = workspace(tmp_path / "w", kind, teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL)
    made.config["prompt"] = {"permutations": orders}
    made.write()
    config = made.load()
    found: dict[str, Any] = json.loads(call("estimate", made.path, "--json")[1])
    assert not made.run.parent.exists()
    extracted = json.loads(call("extract", made.path, "--json")[1])
    assert found["splits"]["train"]["tokens"] == extracted["tokens"] > 0
    assert found["splits"]["train"]["rows"] == SMALL["train"]
    # Shards carry a header besides the states.
    assert found["splits"]["train"]["bytes"] <= extracted["state_bytes"] <= found["splits"]["train"]["bytes"] * 1.5
    teacher = load_teacher(config.teacher)
    _, surveys = survey_task(teacher, load_task_from_config(config.task, prompt=config.prompt, seed=0))
    assert found["tokens"] == sum(p.num_tokens for s in surveys for p in s.encode(range(len(s.rows))))
    assert found["tokens"] == sum(s["tokens"] for s in found["splits"].values())
    # Both figures are rounded.
    assert found["seconds"] * found["tokens_per_second"] == pytest.approx(
        found["computed"], abs=found["tokens_per_second"]
    )
    assert "teacher tokens" in call("estimate", made.path)[1]


def test_the_estimate_bounds_what_lies_between_the_blocks_of_a_streamed_teacher(
    call: Call, tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = workspace(
        tmp_path / "w", "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL
    )
    made.config["teacher"] = {"model": str(model_dir("llama")), "memory": "streamed"}
    made.write()
    found = json.loads(call("estimate", made.path, "--json")[1])
    bound = found["between_bytes"]
    assert "between two blocks" in (said := call("estimate", made.path)[1])
    assert "one block at a time" in said and 0 < found["memory_bytes"] < found["weight_bytes"]
    unlink, seen = Path.unlink, []

    def looked(path: Path, **options: Any) -> None:
        if path.suffix == ".states":
            seen.append(sum(f.stat().st_size for f in path.parent.glob("*.states*")))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", looked)
    call("extract", made.path)
    assert 0 < max(seen) <= bound


def test_an_estimate_of_rows_that_are_all_too_long(
    call: Call, tmp_path: Path, model_dir: Callable[[str], Path]
) -> None:
    made = workspace(
        tmp_path / "w", "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL
    )
    made.config["teacher"] |= {"max_length": 3, "on_long": "drop"}
    made.write()
    status, _, err = call("estimate", made.path)
    assert status == 2 and "every row is longer than the teacher's context of 3 tokens and dropped" in err


def test_an_interrupt_says_how_to_go_on(call: Call, warm: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("probekd.run.run_stages", interrupt)
    status, _, err = call("run", warm.path)
    assert status == 130
    assert "run the same command again" in err


def test_the_estimated_rate_counts_what_the_model_computes(
    tmp_path: Path, model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probekd import estimate
    from probekd.teacher import passes

    made = workspace(
        tmp_path / "w", "classification", teacher=model_dir("llama"), student=model_dir("bert"), sizes=SMALL
    )
    made.config["prompt"] = {"instruction": "the red cow eats grass " * 20}
    made.write()
    run_batch, computed = passes.run_batch, []

    def counted(teacher: Any, batch: Any, *rest: Any) -> None:
        computed.append(batch.shape[0] * batch.shape[1])
        run_batch(teacher, batch, *rest)

    monkeypatch.setattr(passes, "run_batch", counted)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(estimate.time, "monotonic", lambda: float(next(clock)))
    found = estimate.estimate_run(made.load())
    assert found["tokens_per_second"] == pytest.approx(sum(computed) / 2, abs=0.1)
    assert found["computed"] < found["tokens"] / 3
