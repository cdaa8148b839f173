"""What ``teacher_pass.py`` reads: rows, the sequences they become, and the arithmetic that reading them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from probekd.config import Layout
from probekd.prompts import Prompt, PromptEncoder
from probekd.tasks import load_task
from probekd.tasks.base import Task
from probekd.teacher.packing import Group, branches_of, grouped, tree_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLIT = "timed"
# As in studies/readers.py.
MMLU_SUBJECTS = ("high_school_psychology", "miscellaneous", "moral_scenarios", "professional_psychology")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows of a built-in task in one layout.

    Attributes:
        name: As reported.
        task: Name of the built-in task.
        layout: How rows are shown.
        rows: How many; of MMLU a quarter from each subject.
        shots: Worked examples.
        target: How many times as fast as the best peer ours should be.
    """

    name: str
    task: str
    layout: Layout
    rows: int
    shots: int = 0
    target: float | None = None

    def load(self) -> Task:
        """The task, its rows in a split ``timed``."""
        mmlu = self.task == "mmlu"
        task = load_task(self.task, subjects=MMLU_SUBJECTS if mmlu else None)
        if mmlu:
            each = self.rows // len(MMLU_SUBJECTS)
            rows = [e for s in MMLU_SUBJECTS for e in [x for x in task.rows("test") if x.subject == s][:each]]
        else:
            rows = list(task.rows("train")[: self.rows])
        prompt = task.prompt.model_copy(update={"shots": self.shots})
        dev = {"dev": tuple(task.rows("dev"))} if self.shots else {}
        return replace(task, prompt=prompt, splits={SPLIT: tuple(rows), **dev})


WORKLOADS = (
    Workload(name="ARC-Easy, branched", task="arc_easy", layout="branched", rows=400, target=3.5),
    Workload(name="ARC-Easy, listed", task="arc_easy", layout="listed", rows=400, target=1.4),
    Workload(name="MMLU, 5 shots, listed", task="mmlu", layout="listed", rows=200, shots=5, target=7.0),
)
# Rows are shipped with the package, so that the smallest run needs no data.
QUICK = (
    Workload(name="WordNet, branched", task="wordnet_which", layout="branched", rows=12),
    Workload(name="WordNet, listed", task="wordnet_which", layout="listed", rows=12),
)


def prompts_of(workload: Workload, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The rows' prompts, in the data set's order."""
    task = workload.load()
    encoder = PromptEncoder(tokenizer, task)
    return [encoder.encode(e, workload.layout) for e in task.rows(SPLIT)]


def sequences_of(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Every sequence by itself: its tokens, its text, where it is read, and whose states these are.

    ``reads`` are the answer (``listed``) and then each option's last token, as probekd keeps them.
    """
    return [
        {
            "tokens": list(s.tokens),
            "text": tokenizer.decode(list(s.tokens), clean_up_tokenization_spaces=False),
            "reads": [*([s.answer] if p.layout == "listed" else []), *(stop - 1 for _, stop in s.options)],
            "row": p.id,
            "first": 0 if p.layout == "listed" else number,
        }
        for p in prompts
        for number, s in enumerate(p.sequences)
    ]


def sample(sequences: Sequence[dict[str, Any]], batch: int, batches: int) -> list[dict[str, Any]]:
    """Some of the batches that all the sequences make in their order, evenly spread over them.

    Of the evenly spread choices it is the one whose tokens and padding a batch come nearest to those of the whole: a
    few batches that happen to mix long rows with short ones would make the others look slow.
    """
    every = [sequences[i : i + batch] for i in range(0, len(sequences), batch)]
    count = min(batches, len(every))
    whole = _batch_sizes(every)

    def unlike(chosen: Sequence[Sequence[dict[str, Any]]]) -> float:
        return sum(abs(a - b) / b for a, b in zip(_batch_sizes(chosen), whole, strict=True))

    step = len(every) // count
    choices = [[every[offset + i * step] for i in range(count)] for offset in range(len(every) - (count - 1) * step)]
    return [s for chosen in min(choices, key=unlike) for s in chosen]


def _batch_sizes(batches: Sequence[Sequence[dict[str, Any]]]) -> tuple[float, float]:
    """Mean tokens of a batch, and the same with the padding."""
    lengths = [[len(s["tokens"]) for s in b] for b in batches]
    return sum(map(sum, lengths)) / len(batches), sum(max(n) * len(n) for n in lengths) / len(batches)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The least that reading some rows takes when nothing is computed twice.

    Attributes:
        asked: Prompt tokens that are asked for.
        computed: Tokens that are left when what rows and options share is there once.
        pairs: Pairs of a computed token and a token that it attends to.
    """

    asked: int
    computed: int
    pairs: int

    def flops(self, *, linear: int, inner: int, blocks: int) -> int:
        """Floating-point operations.

        Args:
            linear: Parameters of the linear layers of one block.
            inner: Heads times head width.
            blocks: How many blocks are run.
        """
        return blocks * (2 * linear * self.computed + 4 * inner * self.pairs)


def needs_of(prompts: Sequence[Prompt]) -> Needs:
    """What reading these prompts takes at least."""
    groups = grouped([tree_of(branches_of(i, p)) for i, p in enumerate(prompts)])
    return Needs(
        asked=sum(p.num_tokens for p in prompts),
        computed=sum(g.size for g in groups),
        pairs=sum(_pairs(g) for g in groups),
    )


def _pairs(group: Group) -> int:
    def below(stop: int) -> int:
        return stop * (stop + 1) // 2

    total = below(len(group.prefix))
    for tree in group.trees:
        start = tree.skipped + tree.trunk
        total += below(start) - below(tree.skipped)
        total += sum(below(len(b.sequence.tokens)) - below(start) for b in tree.branches)
    return total
