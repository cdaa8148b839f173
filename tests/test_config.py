from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from probekd.config import (
    EvaluateConfig,
    ProbeConfig,
    RunConfig,
    TeacherConfig,
    apply_overrides,
    config_differences,
    dump_config,
    load_config,
    read_yaml,
    validate,
)
from probekd.errors import ConfigError

SHORT = "task: arc-easy\nteacher: some/teacher\nstudent: some/student\n"


def written(directory: Path, text: str) -> Path:
    path = directory / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_strings_stand_for_names(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SHORT))
    assert (config.task.name, config.teacher.model, config.student.model) == (
        "arc-easy",
        "some/teacher",
        "some/student",
    )
    assert config.name == "run"
    assert config.probe.folds == 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sede: 1", "unknown key 'sede'; did you mean 'seed'?"),
        ("probe: {fold: 3}", "unknown key 'probe.fold'; did you mean 'folds'?"),
        ("prompt: {tempalte: x}", "unknown key 'prompt.tempalte'; did you mean 'template'?"),
        ("probe: {zzzzzzz: 1}", "unknown key 'probe.zzzzzzz'; known keys: positions, depths, families, l2, windows"),
        (
            "probe: {windows: [1, 4]}",
            "probe.windows.1: must be odd: as many depths above the middle one as below (found 4)",
        ),
        ("probe: {folds: 2}", "probe.folds: Input should be greater than or equal to 3 (found 2)"),
        ("prompt: {permutations: 0}", "prompt.permutations: Input should be greater than or equal to 1 (found 0)"),
        ("probe: {l2: [0]}", "probe.l2.0: Input should be greater than 0 (found 0)"),
        ("probe: {depths: [-1]}", "probe.depths.0: Input should be greater than or equal to 0 (found -1)"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, SHORT + line + "\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, "task: {nam: x}\nteacher: {model: t, dtype: float16}\n"))
    text = str(caught.value)
    assert "unknown key 'task.nam'; did you mean 'name'?" in text
    assert "the key 'task.name' is missing" in text
    assert "teacher.dtype" in text
    assert "the key 'student' is missing" in text


def test_overrides_reach_into_sections_and_shorthands(tmp_path: Path) -> None:
    overrides = [
        "task.labels=100",
        "probe.depths=[3, 4]",
        "teacher.revision=abc",
        "seed=7",
        "prompt.system=a=b",
        "name=null",
    ]
    config = load_config(written(tmp_path, SHORT + "name: old\n"), overrides)
    assert (config.task.name, config.task.labels) == ("arc-easy", 100)
    assert config.probe.depths == (3, 4)
    assert (config.teacher.model, config.teacher.revision) == ("some/teacher", "abc")
    assert config.seed == 7
    assert config.prompt is not None and config.prompt.system == "a=b"
    assert config.name is None


def test_an_override_leaves_the_values_it_was_given_alone() -> None:
    values = {"task": {"name": "x", "limit": {"test": 3}}}
    assert apply_overrides(values, ["task.limit.test=5"]) == {"task": {"name": "x", "limit": {"test": 5}}}
    assert values["task"] == {"name": "x", "limit": {"test": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("seed.x=3", "seed is a single value, it has no key 'x'"),
        ("seed=[1", "the value is not valid YAML"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"seed": 1}, [override])
    assert message in str(caught.value)


def test_an_unknown_key_in_an_override_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'task.label'; did you mean 'labels'\?"):
        load_config(written(tmp_path, SHORT), ["task.label=3"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1\nb: 2\n", r"run\.yaml:2: not valid YAML"),
        ("- a\n", "expected a mapping of keys to values, found list"),
        ("", "expected a mapping of keys to values, found NoneType"),
        ("a: !!python/object/apply:os.getcwd []\n", r"run\.yaml:1: not valid YAML"),
    ],
)
def test_yaml_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(written(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        read_yaml(tmp_path / "latin.yaml")


def test_a_dumped_config_says_everything_and_loads_again(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, SHORT), ["task.limit={test: 4}", "prompt.layouts=[branched]"])
    text = dump_config(config)
    assert yaml.safe_load(text)["probe"]["l2"] == list(ProbeConfig().l2)
    assert validate(RunConfig, yaml.safe_load(text), "again") == config


def test_configs_are_frozen() -> None:
    config = ProbeConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.folds = 4  # type: ignore[misc]


def test_differences_name_the_leaves() -> None:
    old = {"a": 1, "b": {"c": 2, "d": [1]}, "gone": 0}
    new = {"a": 1, "b": {"c": 3, "d": [1]}, "new": None}
    assert config_differences(old, new) == ["b.c: 2 -> 3", "gone: 0 -> None"]


def test_the_schema_describes_every_key() -> None:
    schema = RunConfig.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "loss is mean cross-entropy" in json.dumps(schema["$defs"]["ProbeConfig"]["properties"]["l2"])


def test_config_is_light() -> None:
    code = "import sys, probekd.config, probekd.tasks.base; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ("teacher.device_map=auto", "device_map"),
        ("teacher.quantization=8bit", "quantization"),
        ("teacher.model=model.gguf", "a GGUF file"),
    ],
)
def test_a_streamed_teacher_is_placed_by_nobody_else(tmp_path: Path, other: str, named: str) -> None:
    path = written(tmp_path, SHORT)
    load_config(path, [other])
    with pytest.raises(ConfigError, match=rf"run\.yaml: teacher: memory: streamed .* cannot be combined with {named}"):
        load_config(path, [other, "teacher.memory=streamed"])


@pytest.mark.parametrize(
    ("device", "gpu", "fast", "expected"),
    [
        ("auto", False, False, "float32"),
        ("auto", True, True, "bfloat16"),
        ("auto", True, False, "float32"),
        ("cpu", True, True, "float32"),
        ("cuda:1", True, True, "bfloat16"),
    ],
)
def test_the_dtype_is_the_devices_own(
    device: str, gpu: bool, fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast and not including_emulation)
    assert TeacherConfig(model="m", device=device).dtype == expected
    assert TeacherConfig(model="m", device=device, dtype="float32").dtype == "float32"
    # What a run writes down says it, so that no other machine goes on in another type.
    assert f"dtype: {expected}" in dump_config(TeacherConfig(model="m", device=device))


@pytest.mark.parametrize("learned", ["train", "unlabelled", "dev"])
def test_rows_that_are_learned_from_are_not_evaluated(learned: str) -> None:
    with pytest.raises(ValidationError, match=f"'{learned}' is learned from or shown in prompts"):
        EvaluateConfig(splits=("test", learned))
