"""The readers that ``teacher_pass.py`` compares; each runs here in a process, and a peer in an environment, of its own.

    python pass_readers.py READER JOB.json

A reader loads once, says so, and then does what each line on stdin says, so that repeats of several readers can take
turns: ``go`` reads everything, ``gemm`` measures matrix products, ``save FILE`` writes the states of the job's checked
sequences. Every line is answered by one line of JSON. Peers' environments have no probekd: it is imported by ours alone.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Job = dict[str, Any]
# States by depth, each (batch, tokens, d), and the first one's depth.
Read = Callable[[Tensor, Tensor, list[str]], list[Tensor]]
GEMM_REPEATS = 9
# PyTorch's operations by what they are here: memory is what bounds the last two.
PROFILED: dict[str, set[str]] = {
    "linear layers": {"mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"},
    "attention": {"aten::_scaled_dot_product_flash_attention_for_cpu", "aten::bmm", "aten::_softmax"},
    "elementwise": {"aten::mul", "aten::add", "aten::silu", "aten::pow", "aten::mean", "aten::neg", "aten::rsqrt"},
    "gathering and copying": {"aten::index", "aten::copy_", "aten::cat", "aten::_index_put_impl_"},
}


def padded(sequences: list[dict[str, Any]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, padded on the right."""
    longest = max(len(s["tokens"]) for s in sequences)
    ids = torch.tensor([[*s["tokens"], *[pad] * (longest - len(s["tokens"]))] for s in sequences])
    lengths = torch.tensor([len(s["tokens"]) for s in sequences])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


class Peer:
    """Batches of 16 in the data set's order, each padded to its longest; all peers keep states in the same way.

    Attributes:
        packages: Whose versions are reported.
        first: The first depth that it gives.
        last_is_normed: Whether its last state is one after the final norm.
    """

    packages: tuple[str, ...] = ()
    first = 0
    last_is_normed = False

    def __init__(self, job: Job) -> None:
        self.job, self.model_path = job, str(job["model"])
        self.kept: list[Tensor] = []
        self.load()

    def load(self) -> None:
        """Load the model in float32."""
        raise NotImplementedError

    def read(self, ids: Tensor, mask: Tensor, texts: list[str]) -> list[Tensor]:
        """States of a batch by depth, each (batch, tokens, d)."""
        raise NotImplementedError

    def warm(self) -> None:
        """Read a few short sequences."""
        self.over(sorted(self.job["sequences"], key=lambda s: len(s["tokens"]))[:4])

    def run(self) -> None:
        """Read everything; ``kept`` has (depths, reads, d) of each sequence."""
        self.kept = self.over(self.job["sequences"])

    def over(self, sequences: list[dict[str, Any]]) -> list[Tensor]:
        """What is kept of some sequences."""
        kept = []
        size = self.job["batch"]
        for start in range(0, len(sequences), size):
            batch = sequences[start : start + size]
            ids, mask = padded(batch, self.job["pad"])
            states = self.read(ids, mask, [s["text"] for s in batch])
            for row, sequence in enumerate(batch):
                kept.append(torch.stack([s[row, sequence["reads"]] for s in states]))
        return kept

    def checked(self) -> list[np.ndarray]:
        """States of the checked sequences."""
        return [self.kept[i].numpy() for i in self.job["checked"]]

    def told(self) -> dict[str, Any]:
        """What is known once it is loaded."""
        return {}


class Loop(Peer):
    """What everybody writes first: Transformers' own hidden states of the whole model."""

    packages = ("transformers",)
    last_is_normed = True

    def load(self) -> None:
        """See ``Peer``."""
        auto = import_module("transformers").AutoModelForCausalLM
        self.model = auto.from_pretrained(self.model_path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor, texts: list[str]) -> list[Tensor]:
        """See ``Peer``."""
        out = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return list(out.hidden_states)


class TransformerLens(Peer):
    """``run_with_cache``, only the residual stream cached: a causal model needs no mask to its right.

    Stopping it after the last block (``stop_at_layer``) gave the same states and saved no time.
    """

    packages = ("transformer-lens", "transformers")

    def load(self) -> None:
        """See ``Peer``."""
        transformers, lens = import_module("transformers"), import_module("transformer_lens")
        model = transformers.AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.model_path)
        bridge = import_module("transformer_lens.model_bridge").TransformerBridge
        self.model = bridge.boot_transformers(
            self.model_path, hf_model=model, tokenizer=tokenizer, device="cpu", dtype=torch.float32
        )
        assert lens
        blocks = range(self.model.cfg.n_layers)
        self.names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in blocks)]

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor, texts: list[str]) -> list[Tensor]:
        """See ``Peer``."""
        _, cache = self.model.run_with_cache(ids, return_type=None, names_filter=self.names)
        return [cache[name] for name in self.names]


class Nnsight(Peer):
    """A trace that saves what enters the first block and what leaves each, and stops there.

    Stopping spares it the head, which ours does not run either: a quarter of its time on long prompts.
    """

    packages = ("nnsight", "transformers")

    def load(self) -> None:
        """See ``Peer``."""
        nnsight = import_module("nnsight")
        self.model = nnsight.TransformersModel(
            self.model_path, task="text-generation", dtype=torch.float32, dispatch=True
        )

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor, texts: list[str]) -> list[Tensor]:
        """See ``Peer``."""
        import nnsight  # type: ignore[import-not-found]

        layers = self.model.model.layers
        with self.model.trace({"input_ids": ids, "attention_mask": mask}) as tracer:
            states = nnsight.save([])
            states.append(layers[0].input)
            for layer in layers:
                states.append(layer.output)
            tracer.stop()
        return [s[0] if isinstance(s, tuple) else s for s in states]


class Lmprobe(Peer):
    """Its extraction from text; the texts are those of the tokens, which is checked."""

    packages = ("lmprobe", "transformers")
    first = 1

    def load(self) -> None:
        """See ``Peer``."""
        backends = import_module("lmprobe.backends")
        self.backend = backends.LocalBackend(self.model_path, device="cpu", dtype=torch.float32)
        self.layers = list(range(self.backend.model.config.num_hidden_layers))
        self.backend.tokenizer.padding_side = "right"
        for sequence in self.job["sequences"]:
            if self.backend.tokenizer(sequence["text"])["input_ids"] != sequence["tokens"]:
                raise ValueError("its tokens of a text are not the sequence that all read")

    def read(self, ids: Tensor, mask: Tensor, texts: list[str]) -> list[Tensor]:
        """See ``Peer``."""
        states, _ = self.backend.extract_batch(texts, self.layers)
        return list(states.chunk(len(self.layers), dim=-1))


class SentenceTransformers(Peer):
    """For scale: ``encode`` of the same texts by the same model's body and mean pooling, which keeps no depths."""

    packages = ("sentence-transformers", "transformers")

    def load(self) -> None:
        """See ``Peer``."""
        make = import_module("sentence_transformers").SentenceTransformer
        self.model = make(self.model_path, device="cpu", model_kwargs={"dtype": torch.float32})

    def warm(self) -> None:
        """See ``Peer``."""
        self.model.encode(["a"], show_progress_bar=False)

    def run(self) -> None:
        """See ``Peer``."""
        self.model.encode([s["text"] for s in self.job["sequences"]], show_progress_bar=False)

    def checked(self) -> list[np.ndarray]:
        """No states by depth, so none to check."""
        return []


class Ours(Peer):
    """``extract`` into an empty cache: tokenising, planning, checking and writing are in the time."""

    packages = ("probekd", "transformers")

    def load(self) -> None:
        """See ``Peer``."""
        from dataclasses import replace

        from pass_workloads import SPLIT, Workload
        from probekd.config import TeacherConfig
        from probekd.extraction import survey_task
        from probekd.teacher.load import load_teacher
        from probekd.teacher.packing import branches_of
        from probekd.teacher.passes import STREAMED_BUDGET, measure_budget, plan_work

        ours = self.job["ours"]
        workload = Workload(**self.job["workload"])
        self.layout, self.task, self.split = workload.layout, workload.load(), SPLIT
        self.depth, self.outputs = ours.get("depth"), bool(ours.get("outputs"))
        config = TeacherConfig(model=self.model_path, memory=ours.get("memory", "whole"))
        teacher = load_teacher(config, depth=self.depth)
        began = time.perf_counter()
        tokens = int(ours.get("batch_tokens", STREAMED_BUDGET))
        if teacher.weights is None and "batch_tokens" not in ours:
            # Once for a teacher and layout on a machine, so apart from the repeats.
            _, (survey,) = survey_task(teacher, self.task, splits=(SPLIT,), layouts=(self.layout,))
            rows = [branches_of(i, p) for i, p in enumerate(survey.encode(range(min(100, len(survey.rows)))))]
            tokens = measure_budget(teacher, plan_work(teacher, rows, packed=True))
        self.measuring = time.perf_counter() - began
        self.teacher = replace(teacher, config=config.model_copy(update={"batch_tokens": tokens}))
        self.cache = Path(tempfile.mkdtemp(dir=self.job["scratch"]))
        self.states: Any = None

    def warm(self) -> None:
        """See ``Peer``: a few rows, by themselves."""
        from dataclasses import replace

        few = replace(self.task, splits={**self.task.splits, self.split: tuple(self.task.rows(self.split)[:4])})
        self._extract(few, "warm")

    def run(self) -> None:
        """See ``Peer``."""
        self.states = self._extract(self.task, "states")

    def _extract(self, task: Any, place: str) -> Any:
        from probekd.extraction import extract

        return extract(
            self.teacher,
            task,
            splits=(self.split,),
            layouts=(self.layout,),
            depths=None if self.depth is None else (self.depth,),
            outputs=self.outputs,
            cache=self.cache / place,
        )

    def clear(self) -> None:
        """Empty the caches."""
        for place in ("warm", "states"):
            shutil.rmtree(self.cache / place, ignore_errors=True)

    def checked(self) -> list[np.ndarray]:
        """See ``Peer``."""
        found = []
        depths = self.states.depths(self.layout)
        for number in self.job["checked"]:
            sequence = self.job["sequences"][number]
            ids, first, reads = [sequence["row"]], sequence["first"], len(sequence["reads"])
            each = []
            for depth in depths:
                ends = self.states.read(self.layout, "option_end", depth, ids)[0]
                if self.layout == "listed":
                    answer = self.states.read(self.layout, "answer", depth, ids)
                    each.append(np.concatenate([answer, ends[: reads - 1]]))
                else:
                    each.append(ends[first : first + 1])
            found.append(np.stack(each))
        return found

    def told(self) -> dict[str, Any]:
        """The batch size, and what the model's arithmetic depends on."""
        config = self.teacher.body.config.get_text_config()
        return {
            "batch_tokens": self.teacher.config.batch_tokens,
            "seconds_measuring_batch_size": round(self.measuring, 3),
            "blocks": len(self.teacher.blocks),
            "linear": sum(m.weight.numel() for m in _linears(self.teacher.blocks[0])),
            "inner": config.num_attention_heads
            * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
        }

    def profile(self) -> dict[str, float]:
        """Shares of the processor's time in one more pass, by what it does; on one thread, so that they add up."""
        from torch.profiler import ProfilerActivity, profile

        self.clear()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                self.run()
        finally:
            torch.set_num_threads(threads)
        times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
        shares = {
            what: sum(times.get(name, 0.0) for name in names) / sum(times.values()) for what, names in PROFILED.items()
        }
        return {**shares, "the rest": 1 - sum(shares.values())}

    def gemm(self) -> float:
        """Floating-point operations a second of a block's linear layers alone, one after the other, at our batch size.

        By PyTorch's plain product or as the teacher has them, whichever is faster.
        """
        tokens = int(self.teacher.config.batch_tokens or 0)
        flops = seconds = 0.0
        with torch.inference_mode():
            for module in _linears(self.teacher.blocks[0]):
                out, width = module.weight.shape
                x = torch.randn(tokens, width)
                plain = module.weight.to_dense() if module.weight.is_mkldnn else module.weight
                seconds += min(
                    _median_seconds(partial(functional.linear, x, plain)), _median_seconds(partial(module, x))
                )
                flops += 2.0 * tokens * out * width
        return flops / seconds


def _median_seconds(work: Callable[[], object]) -> float:
    timed = []
    for _ in range(GEMM_REPEATS):
        began = time.perf_counter()
        work()
        timed.append(time.perf_counter() - began)
    return statistics.median(timed)


def _linears(block: Any) -> list[Any]:
    return [m for m in block.modules() if isinstance(m, torch.nn.Linear)]


READERS: dict[str, type[Peer]] = {
    "loop": Loop,
    "transformer_lens": TransformerLens,
    "nnsight": Nnsight,
    "lmprobe": Lmprobe,
    "sentence_transformers": SentenceTransformers,
    "probekd": Ours,
}


@contextmanager
def answers() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Answer on the real stdout; whatever else is printed goes to stderr."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)

        def answer(what: dict[str, Any]) -> None:
            print(json.dumps(what), file=out, flush=True)

        yield answer


def serve(name: str, job: Job, answer: Callable[[dict[str, Any]], None]) -> None:
    """Load, and then do what stdin says."""
    began = time.perf_counter()
    reader = READERS[name](job)
    reader.warm()
    answer(
        {
            "seconds": time.perf_counter() - began,
            "versions": {p: version(p) for p in (*reader.packages, "torch")},
            "first": reader.first,
            "last_is_normed": reader.last_is_normed,
            **reader.told(),
        }
    )
    for line in sys.stdin:
        what, _, rest = line.strip().partition(" ")
        if what == "go":
            if isinstance(reader, Ours):
                reader.clear()
            # It has waited for minutes while others took their turns, and its memory may have to be brought back.
            reader.warm()
            began = time.perf_counter()
            reader.run()
            seconds = time.perf_counter() - began
            # Kilobytes on Linux.
            answer({"seconds": seconds, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20})
        elif what == "gemm":
            assert isinstance(reader, Ours)
            answer({"flops_per_second": reader.gemm()})
        elif what == "profile":
            assert isinstance(reader, Ours)
            answer(reader.profile())
        else:
            np.savez(rest, *reader.checked())
            answer({})


def main() -> None:
    """Serve, or say why not."""
    with answers() as answer:
        try:
            serve(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), answer)
        except Exception as error:
            # A peer's failure is a result: it is told, whatever it is.
            answer({"error": f"{type(error).__name__}: {error}"})
            raise


if __name__ == "__main__":
    main()
