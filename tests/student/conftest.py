"""A tiny random BERT and two toy tasks that it can learn in a second."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from probekd.config import StudentConfig
from probekd.student import Student, distill
from probekd.tasks.base import Example, Task

KINDS = {
    "animal": ("dog", "cat", "horse", "cow"),
    "tool": ("hammer", "saw", "drill", "wrench"),
    "food": ("bread", "rice", "soup", "cake"),
}
SIZES = ("big", "small", "old", "new", "red", "blue")
LABELS = tuple(KINDS)
WORDS = [*itertools.chain(*KINDS.values()), *SIZES, *LABELS, "which", "is", "a", "the", "?", "seen", "here"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a random encoder with dropout; it has no head, as any pretrained encoder."""
    directory = tmp_path_factory.mktemp("bert")
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocab, model_max_length=64).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.05,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_albert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder whose blocks are one block, run again and again; some of its channels are far larger than others."""
    directory = tmp_path_factory.mktemp("albert")
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer.save_pretrained(directory)
    config = AlbertConfig(
        vocab_size=len(tokenizer),
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.05,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AlbertModel(config)
        model.encoder.albert_layer_groups[0].albert_layers[0].full_layer_layer_norm.weight.data[3] *= 8
        model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder whose tokenizer has an end token and no pad token."""
    directory = tmp_path_factory.mktemp("gpt2")
    bert = AutoTokenizer.from_pretrained(tiny_bert)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bert.backend_tokenizer, eos_token="[SEP]", unk_token="[UNK]")
    tokenizer.save_pretrained(directory)
    config = GPT2Config(
        vocab_size=len(bert), n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=bert.sep_token_id
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def config(tiny_bert: Path) -> StudentConfig:
    # A random network learns nothing for some epochs and then all at once: nothing for early stopping to go by.
    return StudentConfig(
        model=str(tiny_bert), learning_rate=3e-3, batch_size=8, epochs=20, label_epochs=30, early_stopping=None
    )


def _texts(kind: int, number: int, seed: int) -> list[str]:
    """Texts of different lengths that name something of a kind."""
    draw = random.Random(seed + kind)
    texts = []
    for _ in range(number):
        padding = " ".join(draw.choices(SIZES, k=draw.randint(0, 5)))
        texts.append(f"the {padding} {draw.choice(KINDS[LABELS[kind]])} seen here".replace("  ", " "))
    return texts


@pytest.fixture(scope="session")
def kinds() -> Task:
    """Classification: what kind of thing does the text name? 48 labelled rows, 48 in the pool, 48 to test on."""

    def rows(split: str, seed: int, labelled: bool) -> tuple[Example, ...]:
        return tuple(
            Example(id=f"{split}{k}-{i}", question=text, options=LABELS, answer=k if labelled else None)
            for k in range(3)
            for i, text in enumerate(_texts(k, 16, seed))
        )

    splits = {"train": rows("train", 1, True), "unlabelled": rows("pool", 2, False), "test": rows("test", 3, True)}
    return Task(name="kinds", kind="classification", splits=splits, labels=LABELS)


@pytest.fixture(scope="session")
def which() -> Task:
    """Multiple choice: which of 2 to 4 words is of the kind that the question asks for?"""

    def rows(split: str, seed: int, number: int, labelled: bool) -> tuple[Example, ...]:
        draw = random.Random(seed)
        examples = []
        for i in range(number):
            kind = draw.choice(LABELS)
            others = draw.sample([w for k in LABELS if k != kind for w in KINDS[k]], draw.randint(1, 3))
            options = [draw.choice(KINDS[kind]), *others]
            right = options[0]
            draw.shuffle(options)
            answer = options.index(right) if labelled else None
            question = f"which is a {kind} ?"
            examples.append(Example(id=f"{split}{i}", question=question, options=tuple(options), answer=answer))
        return tuple(examples)

    splits = {
        "train": rows("train", 1, 160, True),
        "unlabelled": rows("pool", 2, 80, False),
        "test": rows("test", 3, 60, True),
    }
    return Task(name="which", kind="multiple_choice", splits=splits)


@pytest.fixture(scope="session")
def kinds_student(kinds: Task, config: StudentConfig) -> Student:
    return distill(config.model, kinds, None, method="labels", config=config)


@pytest.fixture(scope="session")
def which_student(which: Task, config: StudentConfig) -> Student:
    return distill(config.model, which, None, method="labels", config=config)
