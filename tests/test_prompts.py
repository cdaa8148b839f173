from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import CHAT_TEMPLATE, byte_level_tokenizer, choice_row, word_tokenizer
from transformers import PreTrainedTokenizerFast

from probekd.config import PromptConfig
from probekd.errors import ConfigError, DataError, ModelError
from probekd.prompts import PromptEncoder, PromptText, TokenSequence, layouts_of, orders_read
from probekd.tasks.base import Example, Task, without_questions
from probekd.tasks.mmlu import PROMPT as MMLU_PROMPT
from probekd.tasks.orders import option_orders


def task_of(*rows: Example, dev: tuple[Example, ...] = (), **prompt: object) -> Task:
    splits = {"train": rows, **({"dev": dev} if dev else {})}
    return Task(name="t", kind="multiple_choice", splits=splits, prompt=PromptConfig(**prompt))


COW = choice_row("cow", "What does a cow eat?", "grass", "stones", "light")
FIVE = choice_row("five", "Which of these is a tool?", "soup", "hammer", "horse", "rice", "cloud", answer=1)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


def decoded(tokenizer: PreTrainedTokenizerFast, sequence: TokenSequence, span: tuple[int, int]) -> str:
    return tokenizer.decode(sequence.tokens[slice(*span)], clean_up_tokenization_spaces=False)


def test_default_text_of_a_listed_row() -> None:
    expected = "What does a cow eat?\nA. grass\nB. stones\nC. light\nAnswer:"
    assert PromptText(task_of(COW)).text(COW, "listed") == expected


def test_default_text_of_a_branched_row_holds_no_option() -> None:
    assert PromptText(task_of(COW)).text(COW, "branched") == "Question: What does a cow eat?\nAnswer:"


def test_default_text_of_a_classification_row(kinds_of_text: Task) -> None:
    row = kinds_of_text.rows("train")[0]
    assert PromptText(kinds_of_text).text(row, "listed") == "Labels: animal, tool, food.\n\nText: the red cow\nLabel:"


def test_a_large_label_set_is_not_listed_in_the_prompt(kinds_of_text: Task) -> None:
    labels = tuple(f"label {i}" for i in range(21))
    row = Example(id="x", question="soup", options=labels, answer=0)
    task = replace(kinds_of_text, labels=labels, splits={"train": (row,)})
    assert PromptText(task).text(row, "listed") == "Text: soup\nLabel:"


def test_layouts_by_kind_and_by_wish() -> None:
    assert layouts_of("multiple_choice", PromptConfig()) == ("listed", "branched")
    assert layouts_of("classification", PromptConfig()) == ("listed",)
    assert layouts_of("classification", PromptConfig(layouts=("branched", "branched"))) == ("branched",)


@pytest.mark.parametrize("row", [COW, FIVE], ids=["three options", "five options"])
@pytest.mark.parametrize("trim", [False, True])
def test_listed_spans_are_the_options(row: Example, trim: bool) -> None:
    tokenizer = byte_level_tokenizer(trim_offsets=trim)
    sequence = PromptEncoder(tokenizer, task_of(row)).encode(row, "listed").sequences[0]
    assert [decoded(tokenizer, sequence, span).strip() for span in sequence.options] == list(row.options)
    assert sequence.answer == len(sequence.tokens) - 1
    assert tokenizer.decode(sequence.tokens[-2:]) == "Answer:"


@pytest.mark.parametrize("row", [COW, FIVE], ids=["three options", "five options"])
def test_branches_continue_one_prefix(row: Example, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = PromptEncoder(tokenizer, task_of(row)).encode(row, "branched")
    prefix = tokenizer(f"Question: {row.question}\nAnswer:")["input_ids"]
    assert len(prompt.sequences) == len(row.options)
    for option, sequence in zip(row.options, prompt.sequences, strict=True):
        assert list(sequence.tokens[: len(prefix)]) == prefix
        assert sequence.scored == (len(prefix), len(sequence.tokens))
        assert sequence.answer == len(prefix) - 1
        assert decoded(tokenizer, sequence, sequence.scored) == f" {option}"
        assert decoded(tokenizer, sequence, sequence.options[0]).strip() == option
    assert prompt.option_bytes == tuple(len(o) + 1 for o in row.options)
    assert prompt.num_tokens == sum(len(s.tokens) for s in prompt.sequences)


def test_an_option_that_recurs_in_the_question_is_found_at_its_own_place(tokenizer: PreTrainedTokenizerFast) -> None:
    row = choice_row("r", "grass or stones or light?", "light", "grass", "a")
    sequence = PromptEncoder(tokenizer, task_of(row)).encode(row, "listed").sequences[0]
    assert [decoded(tokenizer, sequence, s).strip() for s in sequence.options] == ["light", "grass", "a"]
    question = tokenizer("grass or stones or light?")["input_ids"]
    assert min(start for start, _ in sequence.options) >= len(question)


def test_encoder_prompts_keep_cls_and_sep_and_answer_at_the_first_token() -> None:
    tokenizer = word_tokenizer()
    prompt = PromptEncoder(tokenizer, task_of(COW), encoder=True).encode(COW, "listed")
    sequence = prompt.sequences[0]
    assert (sequence.tokens[0], sequence.tokens[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert sequence.answer == 0
    assert [decoded(tokenizer, sequence, s) for s in sequence.options] == list(COW.options)


def test_an_appended_end_token_is_not_read() -> None:
    tokenizer = byte_level_tokenizer(eos=True)
    assert tokenizer("Answer:")["input_ids"][-1] == tokenizer.eos_token_id
    for layout in ("listed", "branched"):
        for sequence in PromptEncoder(tokenizer, task_of(COW)).encode(COW, layout).sequences:
            assert tokenizer.eos_token_id not in sequence.tokens
            assert sequence.tokens[0] == tokenizer.bos_token_id


# Label tokens ------------------------------------------------------------------------------------------------------


def following(tokenizer: PreTrainedTokenizerFast, prompt: tuple[int, ...], text: str, special: bool) -> int:
    """The token that stands right after ``prompt`` when the text with its answer is tokenised as a whole."""
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    assert tuple(ids[: len(prompt)]) == prompt
    return ids[len(prompt)]


def test_label_tokens_follow_a_plain_prompt_with_their_blank(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, task_of(FIVE))
    prompt = encoder.encode(FIVE, "listed").sequences[0].tokens
    text = encoder.texts.text(FIVE, "listed")
    assert encoder.label_tokens(FIVE) == [following(tokenizer, prompt, f"{text} {c}", True) for c in "ABCDE"]
    assert [tokenizer.decode(t) for t in encoder.label_tokens(FIVE)] == [f" {c}" for c in "ABCDE"]


def test_label_tokens_follow_a_chat_prompt_without_blank(chat_prompt: PromptConfig) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    encoder = PromptEncoder(tokenizer, replace(task_of(COW), prompt=chat_prompt))
    prompt = encoder.encode(COW, "listed").sequences[0].tokens
    text = tokenizer.decode(prompt)
    assert encoder.label_tokens(COW) == [following(tokenizer, prompt, text + c, False) for c in "ABC"]
    assert [tokenizer.decode(t) for t in encoder.label_tokens(COW)] == ["A", "B", "C"]


@pytest.mark.parametrize("trim", [False, True])
def test_a_blank_that_is_a_token_of_its_own_ends_the_prompt(trim: bool) -> None:
    tokenizer = byte_level_tokenizer(merges=False, trim_offsets=trim)
    encoder = PromptEncoder(tokenizer, task_of(COW))
    prompt = encoder.encode(COW, "listed").sequences[0].tokens
    assert tokenizer.decode(prompt[-8:]) == "Answer: "
    assert [tokenizer.decode(t) for t in encoder.label_tokens(COW)] == ["A", "B", "C"]
    text = encoder.texts.text(COW, "listed")
    assert encoder.label_tokens(COW) == [following(tokenizer, prompt, f"{text} {c}", True) for c in "ABC"]


def test_label_tokens_of_classification_are_the_labels_first(
    kinds_of_text: Task, tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = PromptEncoder(tokenizer, kinds_of_text)
    row = kinds_of_text.rows("train")[0]
    expected = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in row.options]
    assert encoder.label_tokens(row) == expected


# Worked examples, chat ----------------------------------------------------------------------------------------------


def test_shots_come_from_dev_of_the_same_subject() -> None:
    dev = tuple(
        choice_row(f"d{i}", f"{s} question {i}?", "yes", "no", answer=i % 2, subject=s)
        for i, s in enumerate(["law", "art", "law", "art", "law"])
    )
    row = choice_row("x", "Really?", "no", "yes", subject="law")
    text = PromptText(task_of(row, dev=dev, shots=2, instruction="About {{ subject }}.")).text(row, "listed")
    assert text == (
        "About law.\n\nlaw question 0?\nA. yes\nB. no\nAnswer: A\n\nlaw question 2?\nA. yes\nB. no\nAnswer: A\n\n"
        "Really?\nA. no\nB. yes\nAnswer:"
    )


def test_shots_of_the_branched_layout_say_the_option() -> None:
    dev = (choice_row("d", "Why?", "soup", "rice", answer=1),)
    assert (
        PromptText(task_of(COW, dev=dev, shots=1)).text(COW, "branched").startswith("Question: Why?\nAnswer: rice\n\n")
    )


def test_options_of_shots_are_not_taken_for_the_rows_own(tokenizer: PreTrainedTokenizerFast) -> None:
    dev = (choice_row("d", "Why?", "grass", "stones", "light", answer=1),)
    shown = PromptEncoder(tokenizer, task_of(COW, dev=dev, shots=1)).encode(COW, "listed").sequences[0]
    alone = PromptEncoder(tokenizer, task_of(COW)).encode(COW, "listed").sequences[0]
    extra = len(shown.tokens) - len(alone.tokens)
    assert shown.options == tuple((a + extra, b + extra) for a, b in alone.options)


def test_too_few_shots() -> None:
    dev = (choice_row("d", "Why?", "a", "b", subject="art"),)
    row = choice_row("x", "Really?", "no", "yes", subject="law")
    with pytest.raises(DataError, match=r"prompt.shots = 1, but split 'dev' has 0 answered rows of subject 'law'"):
        PromptText(task_of(row, dev=dev, shots=1)).text(row, "listed")


@pytest.mark.parametrize("split", ["train", "unlabelled", "validation", "test"])
def test_shots_may_not_come_from_rows_that_take_part(split: str) -> None:
    with pytest.raises(ConfigError, match=f"shots_from: '{split}' takes part"):
        PromptText(task_of(COW, shots=1, shots_from=split))


def test_chat_wraps_the_prompt_and_adds_one_bos(chat_prompt: PromptConfig) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    prompt = PromptEncoder(tokenizer, replace(task_of(COW), prompt=chat_prompt)).encode(COW, "listed")
    sequence = prompt.sequences[0]
    assert tokenizer.decode(sequence.tokens) == (
        "<s><|system|>\nBe brief.\n<|user|>\nWhat does a cow eat?\nA. grass\nB. stones\nC. light\nAnswer:\n<|assistant|>\n"
    )
    assert sequence.tokens.count(tokenizer.bos_token_id) == 1
    assert [decoded(tokenizer, sequence, s).strip() for s in sequence.options] == list(COW.options)
    assert prompt.option_bytes == tuple(len(o) for o in COW.options)


def test_chat_without_template() -> None:
    with pytest.raises(ModelError, match="no chat template; turn it off"):
        PromptEncoder(byte_level_tokenizer(), task_of(COW, chat=True))


def test_chat_template_that_refuses_the_system_message() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    encoder = PromptEncoder(tokenizer, task_of(COW, chat=True, system="Be brief."))
    with pytest.raises(ModelError, match="refuses the prompt: System role not supported"):
        encoder.encode(COW, "listed")


@pytest.mark.parametrize("prompt", [{"template": "<s>{{ question }} {{ options }}"}, {"chat": True}])
def test_two_bos_tokens(prompt: dict[str, object]) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    with pytest.raises(ModelError, match="two BOS tokens"):
        PromptEncoder(tokenizer, task_of(COW, **prompt)).encode(COW, "listed")


def test_two_cls_tokens(kinds_of_text: Task) -> None:
    tokenizer = word_tokenizer()
    row = kinds_of_text.rows()[0]
    task = replace(kinds_of_text, prompt=PromptConfig(template="[CLS] {{ question }}", instruction=""))
    with pytest.raises(ModelError, match=r"two BOS tokens \(\[CLS\]\)"):
        PromptEncoder(tokenizer, task, encoder=True).encode(row, "listed")


def test_options_that_nothing_stands_before() -> None:
    """Without BOS the first token of an option would be predicted by nothing, and its answer be read nowhere."""
    task = task_of(COW, branched_template="")
    with pytest.raises(ConfigError, match=r"prompt\.branched_template: nothing stands before the options"):
        PromptEncoder(byte_level_tokenizer(bos=None), task).encode(COW, "branched")
    found = PromptEncoder(byte_level_tokenizer(), task).encode(COW, "branched")
    assert all(s.answer == 0 and s.scored[0] == 1 for s in found.sequences)


# Several orders of the options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [False, True])
def test_a_listed_row_is_shown_in_each_of_its_orders(encoder: bool) -> None:
    tokenizer = word_tokenizer() if encoder else byte_level_tokenizer()
    prompt = PromptEncoder(tokenizer, task_of(FIVE, permutations=7), encoder=encoder).encode(FIVE, "listed")
    assert tuple(s.order for s in prompt.sequences) == option_orders("five", 5, 7)
    for sequence in prompt.sequences:
        shown = replace(FIVE, options=tuple(FIVE.options[i] for i in sequence.order))
        alone = PromptEncoder(tokenizer, task_of(shown), encoder=encoder).encode(shown, "listed").sequences[0]
        assert (sequence.tokens, sequence.answer) == (alone.tokens, alone.answer)
        assert [decoded(tokenizer, sequence, span).strip() for span in sequence.options] == list(FIVE.options)
    assert prompt.num_tokens == sum(len(s.tokens) for s in prompt.sequences)
    assert len(prompt.option_bytes) == 5


def test_a_row_whose_text_begins_with_the_bos_token_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    spoilt = replace(COW, question=f"{tokenizer.bos_token}What does a cow eat?")
    encoder = PromptEncoder(tokenizer, task_of(COW, spoilt))
    encoder.encode(COW, "listed")
    with pytest.raises(DataError, match=r"row 'cow': its text holds '<s>'.*take it out of the row"):
        encoder.encode(spoilt, "listed")


def test_a_row_has_no_more_orders_than_there_are(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptEncoder(tokenizer, task_of(COW, permutations=50))
    assert len({s.order for s in encoder.encode(COW, "listed").sequences}) == 6
    assert len(encoder.encode(COW, "listed").sequences) == 6


def test_one_order_is_the_rows_own_and_branches_have_none(
    tokenizer: PreTrainedTokenizerFast, kinds_of_text: Task
) -> None:
    assert [s.order for s in PromptEncoder(tokenizer, task_of(COW)).encode(COW, "listed").sequences] == [(0, 1, 2)]
    several = task_of(COW, permutations=3)
    assert PromptEncoder(tokenizer, several).encode(COW, "branched") == PromptEncoder(tokenizer, task_of(COW)).encode(
        COW, "branched"
    )
    assert {s.order for s in PromptEncoder(tokenizer, several).encode(COW, "branched").sequences} == {()}
    kinds = replace(kinds_of_text, prompt=several.prompt)
    assert len(PromptEncoder(tokenizer, kinds).encode(kinds.rows()[0], "listed").sequences) == 1
    assert orders_read("classification", "listed", several.prompt) == 1
    assert orders_read("multiple_choice", "branched", several.prompt) == 1
    assert orders_read("multiple_choice", "listed", several.prompt) == 3


def test_worked_examples_keep_their_order(tokenizer: PreTrainedTokenizerFast) -> None:
    dev = (choice_row("d", "Why?", "soup", "rice", "cloud", answer=1),)
    prompt = PromptEncoder(tokenizer, task_of(COW, dev=dev, shots=1, permutations=6)).encode(COW, "listed")
    texts = [tokenizer.decode(s.tokens) for s in prompt.sequences]
    assert len(set(texts)) == 6
    assert all(text.startswith("<s>Why?\nA. soup\nB. rice\nC. cloud\nAnswer: B\n\n") for text in texts)


# Options without the question -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PromptConfig(), PromptConfig(chat=True, system="Be brief."), MMLU_PROMPT])
@pytest.mark.parametrize("layout", ["listed", "branched"])
def test_a_prompt_without_the_question_holds_none_of_its_words(
    prompt: PromptConfig, layout: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    chatty = byte_level_tokenizer()
    chatty.chat_template = CHAT_TEMPLATE
    rows = tuple(replace(row, question="zebra quartz") for row in (COW, FIVE))
    dev = (choice_row("d", "yonder zebra quartz", "soup", "rice"),)
    task = replace(task_of(*rows, dev=dev), prompt=prompt.model_copy(update={"shots": 1}))
    bare = without_questions(task)
    for row, before in zip(bare.rows("train"), rows, strict=True):
        assert replace(row, question=before.question) == before
        shown = PromptEncoder(chatty, bare).encode(row, layout)
        for i, sequence in enumerate(shown.sequences):
            text = tokenizer.decode(sequence.tokens)
            assert not any(word in text for word in ("zebra", "quartz", "yonder"))
            options = row.options if layout == "listed" else row.options[i : i + 1]
            assert [decoded(tokenizer, sequence, span).strip() for span in sequence.options] == list(options)
            assert text.count("Answer:") == 2
        there = tokenizer.decode(PromptEncoder(chatty, task).encode(before, layout).sequences[0].tokens)
        assert all(word in there for word in ("zebra", "quartz", "yonder"))


def test_text_without_the_question() -> None:
    texts = PromptText(without_questions(task_of(COW)))
    (row,) = texts.task.rows()
    assert texts.text(row, "listed") == "\nA. grass\nB. stones\nC. light\nAnswer:"
    assert texts.text(row, "branched") == "Question: \nAnswer:"


def test_classification_has_nothing_to_read_without_its_text(kinds_of_text: Task) -> None:
    with pytest.raises(DataError, match="task kinds: only multiple-choice rows have options"):
        without_questions(kinds_of_text)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_slow_tokenizer(tmp_path: Path) -> None:
    from transformers.models.canine.tokenization_canine import CanineTokenizer

    with pytest.raises(ModelError, match=r"CanineTokenizer gives no character offsets.*tokenizer\.json"):
        PromptEncoder(CanineTokenizer(), task_of(COW))


@pytest.mark.parametrize(
    ("template", "letter"), [("{{ question }}", "A"), ("{{ options[0] }} or {{ options[2] }}?", "B")]
)
def test_template_that_hides_an_option(template: str, letter: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=f"does not show option {letter} of row 'cow'"):
        PromptEncoder(tokenizer, task_of(COW, template=template)).encode(COW, "listed")


def test_template_that_shows_an_option_twice_is_read_where_it_is_last(tokenizer: PreTrainedTokenizerFast) -> None:
    task = task_of(COW, template="{{ options | join(' ') }}; {{ options | join(' ') }}")
    sequence = PromptEncoder(tokenizer, task).encode(COW, "listed").sequences[0]
    assert [decoded(tokenizer, sequence, s).strip() for s in sequence.options] == list(COW.options)
    assert sequence.options[-1][1] == len(sequence.tokens)


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{{ question.__class__ }}", "{{ options.append(1) }}"]
)
def test_templates_run_in_a_sandbox(template: str) -> None:
    with pytest.raises(ConfigError, match=r"prompt template: .*(unsafe|not safely)"):
        PromptText(task_of(COW, template=template)).text(COW, "listed")


def test_template_with_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"'qestion' is undefined; it can use .*options, question, subject"):
        PromptText(task_of(COW, template="{{ qestion }}")).text(COW, "listed")


def test_template_that_does_not_parse() -> None:
    with pytest.raises(ConfigError, match="prompt template, line 2: "):
        PromptText(task_of(COW, template="x\n{% for %}")).text(COW, "listed")


@pytest.mark.parametrize("chat", [False, True])
def test_text_of_a_row_is_never_a_template(chat: bool) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    hostile = "{{ 7*7 }} {% raw %} <b>&amp;</b> {# no #}"
    row = choice_row("h", hostile, hostile + "1", "{{ question }}", "&")
    task = task_of(row, chat=chat)
    sequence = PromptEncoder(tokenizer, task).encode(row, "listed").sequences[0]
    text = tokenizer.decode(sequence.tokens, clean_up_tokenization_spaces=False)
    assert f"{hostile}\nA. {hostile}1\nB. {{{{ question }}}}\nC. &\nAnswer:" in text
    assert [decoded(tokenizer, sequence, s).strip() for s in sequence.options] == list(row.options)


@pytest.mark.parametrize("place", ["question", "option"])
def test_text_with_a_marker_of_ours(place: str, tokenizer: PreTrainedTokenizerFast) -> None:
    odd = "a\U0010f003b"
    row = choice_row("odd", odd if place == "question" else "Why?", odd if place == "option" else "a", "c")
    with pytest.raises(DataError, match=r"row 'odd': .*U\+10F000"):
        PromptEncoder(tokenizer, task_of(row)).encode(row, "listed")


def test_option_that_the_tokenizer_drops() -> None:
    row = choice_row("gone", "Why?", "\x00", "soup")
    with pytest.raises(DataError, match="no token covers"):
        PromptEncoder(word_tokenizer(), task_of(row), encoder=True).encode(row, "listed")
