"""Load a frozen teacher: its body, the parts of its head that readouts need, and its fingerprint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekd.config import TeacherConfig
from probekd.errors import ModelError, StoreError
from probekd.files import file_digest, read_json, write_json
from probekd.tasks.base import content_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_NORM_NAMES = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")
_FINGERPRINTED = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja", "*.txt", "*.py", "*.gguf")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen Transformers model, taken apart for reading.

    Attributes:
        name: As the user gave it.
        model: The loaded model, in eval mode; run whole only to check our own pass against it.
        body: The base model, without LM head.
        blocks: Its L blocks in order.
        norm: The final norm, or None where the architecture has none (BERT).
        head_weight: Output embedding of shape (vocabulary, d); None = no output readouts (encoder, or no trained head).
        head_bias: Bias of shape (vocabulary,), or None.
        softcap: Final logit soft cap (Gemma-2), or None.
        encoder: Bidirectional: batches need an attention mask, ``answer`` is the first token.
        max_length: Context length in tokens.
        fingerprint: Hash of config, weights and tokenizer files.
    """

    name: str
    model: Any
    body: Any
    tokenizer: PreTrainedTokenizerBase
    blocks: tuple[Any, ...]
    norm: Any | None
    head_weight: torch.Tensor | None
    head_bias: torch.Tensor | None
    softcap: float | None
    encoder: bool
    max_length: int
    fingerprint: str
    config: TeacherConfig

    @property
    def depths(self) -> int:
        """Number of blocks L; depths run from 0 to L."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Dimension d of a state."""
        return int(self.body.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the body lives."""
        return next(self.body.parameters()).device  # type: ignore[no-any-return]

    @property
    def attention(self) -> str:
        """Attention implementation in use; part of the key of its states."""
        return str(getattr(self.body.config, "_attn_implementation", "eager"))


def resolve_model(model: str | Path, revision: str | None = None) -> Path:
    """Directory of a model: a local one as it is, a Hub id after download.

    Raises:
        ModelError: no such directory and no such (reachable) Hub model, or a directory that is no model.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: not a Transformers model directory: config.json is missing")
        return path
    if (
        path.exists()
        or (os.sep in str(model).strip(os.sep) and len(path.parts) != 2)
        or str(model).startswith((".", os.sep))
    ):
        raise ModelError(f"{model}: no such model directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(_FINGERPRINTED)))
    except (RepositoryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{model}: no such directory, and the Hub could not provide it ({type(error).__name__}); check the name, or the network"
        ) from None


def cache_dir() -> Path:
    """The states cache: the variable PROBEKD_CACHE, else ~/.cache/probekd."""
    return Path(os.environ.get("PROBEKD_CACHE") or Path.home() / ".cache" / "probekd")


def model_fingerprint(directory: Path) -> str:
    """Hash over the names and contents of a model directory's files.

    Digests are remembered by path, size and modification time, since hashing a large model takes a while.
    """
    memo_path = cache_dir() / "fingerprints.json"
    try:
        memo = read_json(memo_path)
    except StoreError:
        memo = {}
    digests = {}
    known = len(memo)
    for file in sorted({f for pattern in _FINGERPRINTED for f in directory.glob(pattern)}):
        if file.name in ("probekd.json", "README.md"):
            continue
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in memo:
            memo[key] = file_digest(file)
        digests[file.name] = memo[key]
    if len(memo) > known:
        write_json(memo_path, memo)
    return content_hash(*(f"{name}={digest}" for name, digest in digests.items()))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence Transformers' loading bars and advice for the duration; real problems are raised by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a directory's tokenizer; raises ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {_first_line(error)}") from None


def is_encoder(config: Any) -> bool:
    """Whether a model reads both ways: its type has a masked-LM form (BERT family)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def load_teacher(config: TeacherConfig | str | Path) -> Teacher:
    """Load a teacher, frozen, in evaluation mode.

    Raises:
        ModelError: not a model, an architecture without a recognisable stack of blocks, or an encoder-decoder.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    if not isinstance(config, TeacherConfig):
        config = TeacherConfig(model=str(config))
    directory = resolve_model(config.model, config.revision)
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    try:
        with quiet_transformers():
            model_config = AutoConfig.from_pretrained(directory, **options)
            if getattr(model_config, "is_encoder_decoder", False):
                raise ModelError(
                    f"{config.model}: encoder-decoder teachers are not supported; use a decoder or an encoder"
                )
            encoder = is_encoder(model_config)
            family = AutoModel if encoder else AutoModelForCausalLM
            loaded: Any = family.from_pretrained(
                directory, dtype=getattr(torch, config.dtype), output_loading_info=True, **options
            )
            model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{config.model}: cannot be loaded as a teacher: {_first_line(error)}") from None
    body = model if encoder else model.base_model
    missing = sorted(report["missing_keys"])
    head = (
        None
        if encoder or any("head" in key or "embed_out" in key for key in missing)
        else model.get_output_embeddings()
    )
    lost = [key for key in missing if "head" not in key and "embed_out" not in key and "pooler" not in key]
    if lost:
        raise ModelError(
            f"{config.model}: {len(lost)} weights are missing from the checkpoint, such as {lost[0]}; its states would be random"
        )
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    model.requires_grad_(False).eval().to(device)
    text_config = body.config.get_text_config()
    return Teacher(
        name=config.model,
        model=model,
        body=body,
        tokenizer=load_tokenizer(directory, trust_remote_code=config.trust_remote_code),
        blocks=_find_blocks(body, int(text_config.num_hidden_layers), config.model),
        norm=_find_norm(body),
        head_weight=None if head is None else head.weight,
        head_bias=None if head is None else getattr(head, "bias", None),
        softcap=getattr(text_config, "final_logit_softcapping", None),
        encoder=encoder,
        max_length=config.max_length or int(getattr(text_config, "max_position_embeddings", 0) or 2**31),
        fingerprint=model_fingerprint(directory),
        config=config,
    )


def _find_blocks(body: Any, count: int, name: str) -> tuple[Any, ...]:
    """The one module list with as many members as the config has layers; names differ by family (layers, h, layer)."""
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
    return tuple(lists[0])


def _find_norm(body: Any) -> Any | None:
    """The final norm, which sits beside the stack of blocks under one of a few names."""
    owners = [
        body,
        *(getattr(body, part) for part in ("decoder", "transformer", "language_model") if hasattr(body, part)),
    ]
    return next((getattr(o, n) for o in owners for n in _NORM_NAMES if getattr(o, n, None) is not None), None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
