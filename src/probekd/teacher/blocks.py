"""A model's blocks apart from the rest of it: only the first ones, or one at a time from its safetensors."""

from __future__ import annotations

import shutil
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekd.errors import ModelError
from probekd.files import cache_dir

if TYPE_CHECKING:
    from torch import Tensor


def find_stack(body: Any, count: int, name: str) -> Any:
    """The one module list with as many members as the config has layers; names differ by family (layers, h, layer).

    Raises:
        ModelError: there is none.
    """
    from torch import nn

    lists = [
        m
        for m in body.modules()
        if isinstance(m, nn.ModuleList) and len(m) == count and m[0].__class__ is not nn.ModuleList
    ]
    if not lists:
        raise ModelError(
            f"{name}: no stack of {count} blocks found in {type(body).__name__}; this architecture is not supported"
        )
    # The outermost comes first in modules(): lists inside a block (experts, heads) may have the same length.
    return lists[0]


def first_blocks(config: Any, count: int) -> None:
    """Change a model's text config so that only the first blocks are built, and the others' weights never read."""
    for name, value in list(vars(config).items()):
        # Per-block lists, such as layer_types and no_rope_layers, must have one entry for each block that is left.
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, name, value[:count])
    config.num_hidden_layers = count


def depth_of_every_kind(blocks: Sequence[Any], layer_types: Sequence[str]) -> int:
    """The least depth at which a block of every kind has run, such as local and global attention.

    Blocks are of one kind when the config says so, and when their modules are of the same classes with the same plain
    attributes (a window, a flag), whatever these are called; what numbers a block makes no kind.

    Args:
        blocks: The model's blocks; their weights need not be in memory.
        layer_types: What the config calls each of them; may be empty.
    """
    kinds = [(*build_of(block), *layer_types[i : i + 1]) for i, block in enumerate(blocks)]
    return max(kinds.index(kind) for kind in kinds) + 1


def build_of(block: Any) -> tuple[Any, ...]:
    """Classes of a block's modules, and their attributes that are plain values."""
    return tuple(
        (type(module), *sorted((k, v) for k, v in vars(module).items() if _tells_apart(k, v)))
        for module in block.modules()
    )


def _tells_apart(name: str, value: Any) -> bool:
    numbers = any(part in name for part in ("idx", "index", "layer_id", "layer_number"))
    return isinstance(value, bool | int | float | str) and not name.startswith("_") and not numbers


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """Weights of blocks that are not in memory.

    Attributes:
        tensors: By full name; reading one opens its safetensors file.
        path: Name of the stack of blocks.
        dtype: Type that they are computed in.
        device: Where they are computed.
        folder: Holds weights that are not in the checkpoint as the model wants them; gone when this is.
        packed: Whether linear layers are computed in oneDNN's order (``linears.make_packable`` was told of them).
    """

    tensors: Mapping[str, Tensor]
    path: str
    dtype: Any
    device: str
    folder: Any
    packed: bool

    def load(self, block: Any, number: int) -> None:
        """Bring block ``number`` (0-based) into memory."""
        from accelerate.utils import set_module_tensor_to_device

        from probekd.teacher.linears import pack

        for name, _ in block.named_parameters():
            value = self.tensors[f"{self.path}.{number}.{name}"]
            kept = self.dtype if value.is_floating_point() else value.dtype
            set_module_tensor_to_device(block, name, self.device, value=value.to(kept))
        if self.packed:
            pack(block)

    def load_all(self, model: Any) -> None:
        """Bring every block of a model into memory."""
        for number, block in enumerate(model.get_submodule(self.path)):
            self.load(block, number)

    @contextmanager
    def loaded(self, block: Any, number: int) -> Iterator[None]:
        """Have block ``number`` (0-based) in memory for the duration."""
        import torch
        from accelerate.utils import set_module_tensor_to_device

        self.load(block, number)
        try:
            yield
        finally:
            for name, weight in list(block.named_parameters()):
                empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
                set_module_tensor_to_device(block, name, "meta", value=empty)


def offloaded(
    family: Any, options: Mapping[str, Any], name: str, device: str, *, encoder: bool, packed: bool
) -> tuple[Any, list[str], BlockWeights]:
    """Load a model without its blocks; which file has which weight is accelerate's knowledge.

    Args:
        family: Auto class.
        options: Of its ``from_pretrained``, config and dtype among them.
        name: Of the model, for messages.
        device: Where all but the blocks lie, and where blocks are computed.
        encoder: Whether the model is its own body.
        packed: Whether linear layers of blocks are to be computed in oneDNN's order.

    Returns:
        The model, the names of weights that its checkpoint lacks, and where its blocks come from.

    Raises:
        ModelError: no stack of blocks is found, or weights are missing.
    """
    import torch
    from accelerate.hooks import remove_hook_from_module

    from probekd.teacher.linears import make_packable

    with torch.device("meta"):
        skeleton = family.from_config(options["config"], trust_remote_code=options["trust_remote_code"])
    body = skeleton if encoder else skeleton.base_model
    stack = find_stack(body, int(options["config"].get_text_config().num_hidden_layers), name)
    path = next(name for name, module in skeleton.named_modules() if module is stack)
    where = {name: place if place == "disk" else device for name, place in _places(skeleton, path).items()}
    # Weights that Transformers converts while loading (experts in one tensor) are written here, as long as we live.
    folder = OffloadFolder(cache_dir() / "offload")
    model, report = family.from_pretrained(**options, device_map=where, offload_folder=str(folder.path))
    refuse_lost(report["missing_keys"], name)
    hooks = (getattr(m, "_hf_hook", None) for m in model.modules())
    maps = (getattr(hook, "weights_map", None) for hook in hooks)
    index = next(m.dataset for m in maps if m is not None)
    remove_hook_from_module(model, recurse=True)
    weights = BlockWeights(
        tensors=index, path=path, dtype=options["dtype"], device=device, folder=folder, packed=packed
    )
    if packed:
        make_packable(model.get_submodule(path))
    return model, sorted(report["missing_keys"]), weights


def refuse_lost(missing: Iterable[str], name: str) -> None:
    """A model without a trained head can be read; raise ModelError where other weights are missing."""
    lost = sorted(key for key in missing if not any(part in key for part in ("head", "embed_out", "pooler")))
    if lost:
        raise ModelError(
            f"{name}: {len(lost)} weights are missing from the checkpoint, such as {lost[0]}; its states would be random"
        )


class OffloadFolder:
    """A directory that is gone with this object; one whose process was killed goes when the next is made.

    Args:
        root: Where these directories lie, each with a lock beside it that its process holds.
    """

    def __init__(self, root: Path) -> None:
        from filelock import FileLock

        root.mkdir(parents=True, exist_ok=True)
        sweep_offloaded(root)
        self.path = root / uuid.uuid4().hex
        lock = FileLock(_lock_of(self.path))
        lock.acquire()
        self.path.mkdir()
        self._gone = weakref.finalize(self, _remove_held, self.path, lock)


def sweep_offloaded(root: Path) -> None:
    """Remove the directories of processes that were killed."""
    from filelock import FileLock, Timeout

    for path in [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []:
        lock = FileLock(_lock_of(path), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        _remove_held(path, lock)


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _remove_held(path: Path, lock: Any) -> None:
    shutil.rmtree(path, ignore_errors=True)
    _lock_of(path).unlink(missing_ok=True)
    lock.release()


def _places(model: Any, path: str) -> dict[str, str]:
    """A device map: every module stays but the blocks."""
    places: dict[str, str] = {}

    def walk(module: Any, prefix: str) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if full == path:
                places.update({f"{full}.{i}": "disk" for i in range(len(child))})
            elif path.startswith(f"{full}."):
                walk(child, f"{full}.")
            else:
                places[full] = "stay"

    walk(model, "")
    return places
