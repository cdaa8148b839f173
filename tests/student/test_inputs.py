from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from probekd.errors import DataError
from probekd.student.inputs import Encoded, encode, length_batches, map_sequences, pad, row_batches
from probekd.tasks.base import Example


def row(question: str, *options: str) -> Example:
    return Example(id="r1", question=question, options=options)


def test_classification_reads_the_question_alone(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    (encoded,) = encode(tokenizer, [row("the big dog", "animal", "tool")], "classification", 64)
    assert [tokenizer.decode(s["input_ids"]) for s in encoded.sequences] == ["[CLS] the big dog [SEP]"]
    assert not encoded.cut


def test_multiple_choice_reads_a_pair_for_each_option(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [row("which is a tool ?", "saw", "cow"), row("which ?", "red cat", "dog", "rice")]
    first, second = encode(tokenizer, rows, "multiple_choice", 64)
    texts = [tokenizer.decode(s["input_ids"]) for s in (*first.sequences, *second.sequences)]
    questions = ["which is a tool?"] * 2 + ["which?"] * 3
    assert texts == [
        f"[CLS] {q} [SEP] {o} [SEP]" for q, o in zip(questions, ["saw", "cow", "red cat", "dog", "rice"], strict=True)
    ]
    assert list(first.sequences[0]["token_type_ids"]) == [0] * 7 + [1] * 2


def test_a_long_text_loses_the_end_of_its_question_and_is_counted(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [row("the " * 9 + "dog", "saw", "cow"), row("the dog", "saw", "red cat")]
    long, short = encode(tokenizer, rows, "multiple_choice", 10)
    assert tokenizer.decode(long.sequences[1]["input_ids"]) == "[CLS] the the the the the the [SEP] cow [SEP]"
    assert [long.cut, short.cut] == [True, False]
    (alone,) = encode(tokenizer, rows[:1], "classification", 8)
    assert tokenizer.decode(alone.sequences[0]["input_ids"]) == "[CLS] the the the the the the [SEP]"
    assert alone.cut
    (exact,) = encode(tokenizer, rows[:1], "classification", 12)
    assert len(exact.sequences[0]["input_ids"]) == 12
    assert not exact.cut


def test_an_option_that_leaves_no_room_is_an_error(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    with pytest.raises(DataError, match=r"row 'r1'.*has 7 tokens.*max_length"):
        encode(tokenizer, [row("which ?", "saw", "cow " * 7)], "multiple_choice", 10)
    encode(tokenizer, [row("which ?", "saw", "cow " * 6)], "multiple_choice", 10)


def test_an_option_is_never_cut_even_where_it_is_the_longer_text(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    (encoded,) = encode(tokenizer, [row("which is a tool ?", "saw", "red cow is seen here")], "multiple_choice", 10)
    assert tokenizer.decode(encoded.sequences[1]["input_ids"]) == "[CLS] which is [SEP] red cow is seen here [SEP]"


def test_length_batches_cover_every_row_once_longest_first() -> None:
    batches = list(length_batches([3, 9, 1, 9, 4], 2))
    assert batches == [[1, 3], [4, 0], [2]]


def test_map_sequences_restores_the_order(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    texts = ["the dog", "the big red old dog", "dog", "a cat is here"]
    sequences = [e.sequences[0] for e in encode(tokenizer, [row(t) for t in texts], "classification", 64)]
    lengths = map_sequences(
        lambda batch: batch["attention_mask"].sum(1, keepdim=True),
        tokenizer,
        sequences,
        batch_size=3,
        device=torch.device("cpu"),
    )
    assert lengths.dtype == np.float32
    assert lengths[:, 0].tolist() == [4, 7, 3, 6]


def test_pad_fills_on_the_right(tiny_bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    batch = pad(
        tokenizer, [{"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1]}, {"input_ids": [2], "attention_mask": [1]}]
    )
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_row_batches_never_mix_numbers_of_options() -> None:
    shapes = [(3, 5), (2, 1), (3, 9), (2, 4), (2, 2)]  # options, tokens
    rows = [Encoded(sequences=({"input_ids": [0] * n},) * k, options=k, cut=False) for k, n in shapes]
    assert list(row_batches(rows, 4)) == [[2], [0], [3, 4], [1]]
    assert list(row_batches(rows, 1)) == [[2], [0], [3], [4], [1]]
