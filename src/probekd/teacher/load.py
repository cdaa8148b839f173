"""Load a frozen teacher: its body, the parts of its head that readouts need, and its fingerprint."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekd.config import TeacherConfig
from probekd.errors import ModelError, StoreError, first_line
from probekd.files import cache_dir, file_digest, read_json, write_json
from probekd.tasks.base import content_hash
from probekd.teacher.architecture import context_length, find_norm, logit_scale
from probekd.teacher.blocks import (
    BlockWeights,
    build_of,
    find_stack,
    first_blocks,
    offloaded,
    refuse_lost,
)
from probekd.teacher.gguf import gguf_source
from probekd.teacher.memory import fits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# Forms of weights that are needed where there are no safetensors, and files that hold the same once more (Mistral's).
_OLDER = ("*.bin", "*.gguf")
_TWICE = ["consolidated*"]
_FINGERPRINTED = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja", "*.txt", "*.py", "*.gguf")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen Transformers model, taken apart for reading.

    Attributes:
        name: As the user gave it.
        model: The loaded model, in eval mode; run whole only to check our own pass against it.
        body: The base model, without LM head.
        blocks: Its blocks in order: all L of them, or the first ones where the rest were not loaded.
        depths: L, the number of blocks that the model has; depths run from 0 to L.
        weights: Where the blocks' weights come from when they are not in memory (``streamed``), else None.
        norm: The final norm, or None where the architecture has none (BERT).
        head_weight: Output embedding of shape (vocabulary, d); None = no output readouts (encoder, or no trained head).
        head_bias: Bias of shape (vocabulary,), or None.
        logit_scale: What logits are multiplied by (Cohere's ``logit_scale``, one over Granite's ``logits_scaling``).
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
    depths: int
    weights: BlockWeights | None
    norm: Any | None
    head_weight: torch.Tensor | None
    head_bias: torch.Tensor | None
    logit_scale: float
    softcap: float | None
    encoder: bool
    max_length: int
    fingerprint: str
    config: TeacherConfig

    @property
    def whole(self) -> bool:
        """Whether every block is there."""
        return len(self.blocks) == self.depths

    @property
    def dtype(self) -> torch.dtype:
        """Type of the states."""
        import torch

        return getattr(torch, self.config.dtype)  # type: ignore[no-any-return]

    @property
    def width(self) -> int:
        """Dimension d of a state."""
        return int(self.body.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.body.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def attention(self) -> str:
        """Attention implementation in use; part of the key of its states."""
        return str(getattr(self.body.config, "_attn_implementation", "eager"))


def resolve_model(model: str | Path, revision: str | None = None) -> Path:
    """Directory of a model: a local one as it is, a Hub id after download; a GGUF file is its own path.

    Raises:
        ModelError: no such directory and no such (reachable) Hub model, or a directory that is no model.
    """
    path = Path(model)
    if path.suffix == ".gguf" and path.is_file():
        return path
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

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(str(model), revision=revision, allow_patterns=list(patterns), ignore_patterns=_TWICE)
        )

    try:
        found = fetch(*(p for p in _FINGERPRINTED if p not in _OLDER))
        # Most repositories hold the same weights in several forms.
        return found if any(found.glob("*.safetensors")) else fetch(*_FINGERPRINTED)
    except (RepositoryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{model}: no such directory, and the Hub could not provide it ({type(error).__name__}); check the name, or the network"
        ) from None


def model_fingerprint(directory: Path) -> str:
    """Hash over the names and contents of a model directory's files.

    Digests are remembered by path, size and modification time, since hashing a large model takes a while. A GGUF file
    has everything in itself.
    """
    memo_path = cache_dir() / "fingerprints.json"
    try:
        memo = read_json(memo_path)
    except StoreError:
        memo = {}
    digests = {}
    known = len(memo)
    inside = {f for pattern in _FINGERPRINTED for f in directory.glob(pattern)}
    for file in sorted(inside) if directory.is_dir() else [directory]:
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


def _fingerprint(source: Path, config: TeacherConfig) -> str:
    """The model's, and how it is quantised: that makes another model of it."""
    plain = model_fingerprint(source)
    return content_hash(plain, config.quantization) if config.quantization else plain


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence Transformers' loading bars and advice for the duration; real problems are raised by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Of a streamed teacher accelerate says that its blocks are not in memory, which is the point.
    placing = getLogger("accelerate.big_modeling")
    placed = placing.level
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    placing.setLevel("ERROR")
    try:
        yield
    finally:
        logging.set_verbosity(level)
        placing.setLevel(placed)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a directory's tokenizer; raises ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(**gguf_source(directory), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{directory}: its tokenizer cannot be loaded: {first_line(error)}") from None


def is_encoder(config: Any) -> bool:
    """Whether a model reads both ways: its type has a masked-LM form (BERT family)."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def load_teacher(config: TeacherConfig | str | Path, *, depth: int | None = None) -> Teacher:
    """Load a teacher, frozen, in evaluation mode.

    Args:
        config: What to load, and how.
        depth: Load the first blocks alone, for passes that go no further; None = all of them.

    Raises:
        ModelError: not a model, an architecture without a recognisable stack of blocks, or an encoder-decoder.
    """
    if not isinstance(config, TeacherConfig):
        config = TeacherConfig(model=str(config))
    source = resolve_model(config.model, config.revision)
    with _reported(config.model), quiet_transformers():
        model_config = _load_config(source, config)
        text_config = model_config.get_text_config()
        depths = int(text_config.num_hidden_layers)
        if depth is not None and not 0 <= depth <= depths:
            raise ModelError(f"{config.model}: there is no depth {depth}; it has {depths} blocks")
        encoder = is_encoder(model_config)
        if depth is not None and depth < depths:
            model_config = _cut(model_config, config, max(1, depth), encoder=encoder)
            text_config = model_config.get_text_config()
        streamed = _streams(config, source)
        model, missing, weights = _load_model(source, config, model_config, encoder=encoder, streamed=streamed)
    body = model if encoder else model.base_model
    cut = int(text_config.num_hidden_layers) < depths
    head = (
        None
        if encoder or cut or any("head" in key or "embed_out" in key for key in missing)
        else model.get_output_embeddings()
    )
    model.requires_grad_(False).eval()
    return Teacher(
        name=config.model,
        model=model,
        body=body,
        tokenizer=load_tokenizer(source, trust_remote_code=config.trust_remote_code),
        blocks=tuple(find_stack(body, int(text_config.num_hidden_layers), config.model)),
        depths=depths,
        weights=weights,
        norm=find_norm(body),
        head_weight=None if head is None else head.weight,
        head_bias=None if head is None else getattr(head, "bias", None),
        logit_scale=logit_scale(text_config),
        softcap=getattr(text_config, "final_logit_softcapping", None),
        encoder=encoder,
        max_length=_max_length(config, context_length(body, text_config)),
        fingerprint=_fingerprint(source, config),
        config=config,
    )


def _max_length(config: TeacherConfig, context: int) -> int:
    if config.max_length is not None and config.max_length > context:
        raise ModelError(
            f"{config.model}: teacher.max_length is {config.max_length}, and the model's context ends at {context} tokens; "
            "lower it, or leave it out"
        )
    return config.max_length or context


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    """Turn what Transformers and its parts raise on a bad model into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    # PyTorch says with an AssertionError that it was built without CUDA.
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        raise ModelError(f"{name}: cannot be loaded as a teacher: {first_line(error)}") from None


def _load_config(source: Path, config: TeacherConfig) -> Any:
    from transformers import AutoConfig

    where = gguf_source(source)
    found = AutoConfig.from_pretrained(**where, trust_remote_code=config.trust_remote_code)
    if getattr(found, "is_encoder_decoder", False):
        raise ModelError(f"{config.model}: encoder-decoder teachers are not supported; use a decoder or an encoder")
    return found


def _cut(model_config: Any, config: TeacherConfig, count: int, *, encoder: bool) -> Any:
    """The config of the first blocks alone; of all of them where these would be built another way.

    Some families scale a block by the number of blocks (MiniCPM3), or have the last ones use the keys of earlier ones
    (Gemma-3n): their first blocks are others in a shorter model.
    """
    cut = copy.deepcopy(model_config)
    first_blocks(cut.get_text_config(), count)
    whole, shorter = (_builds(c, config, encoder=encoder) for c in (model_config, cut))
    return cut if shorter == whole[:count] else model_config


def _builds(model_config: Any, config: TeacherConfig, *, encoder: bool) -> list[Any]:
    import torch

    with torch.device("meta"):
        skeleton = _family(encoder).from_config(model_config, trust_remote_code=config.trust_remote_code)
    count = int(model_config.get_text_config().num_hidden_layers)
    return [build_of(b) for b in find_stack(skeleton if encoder else skeleton.base_model, count, config.model)]


def _family(encoder: bool) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModel if encoder else AutoModelForCausalLM


def _load_model(
    source: Path, config: TeacherConfig, model_config: Any, *, encoder: bool, streamed: bool
) -> tuple[Any, list[str], BlockWeights | None]:
    """The model, the names of weights that its checkpoint lacks, and where streamed blocks come from."""
    import torch

    family = _family(encoder)
    options: dict[str, Any] = {
        **gguf_source(source),
        "config": model_config,
        "dtype": getattr(torch, config.dtype),
        "trust_remote_code": config.trust_remote_code,
        "output_loading_info": True,
    }
    packed = _packs(config, model_config)
    if packed or streamed:
        model, missing, weights = offloaded(
            family, options, config.model, device_of(config), encoder=encoder, packed=packed
        )
        if streamed:
            return model, missing, weights
        # One by one: as a whole they would be in memory in both orders.
        weights.load_all(model)
        return model, missing, None
    if config.quantization:
        options["quantization_config"] = _quantization(config)
    if config.device_map:
        options["device_map"] = config.device_map
    model, report = family.from_pretrained(**options)
    refuse_lost(report["missing_keys"], config.model)
    if not config.device_map and not config.quantization:
        model.to(device_of(config))
    return model, sorted(report["missing_keys"]), None


def device_of(config: TeacherConfig) -> str:
    """Where a teacher is computed."""
    import torch

    return config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def _quantization(config: TeacherConfig) -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("teacher.quantization needs bitsandbytes: pip install bitsandbytes")
    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=getattr(torch, config.dtype))


def _packs(config: TeacherConfig, model_config: Any) -> bool:
    """Whether linear layers are computed by oneDNN: those of plain float32 weights on a CPU."""
    import torch

    elsewhere = config.device_map or config.quantization or getattr(model_config, "quantization_config", None)
    plain = config.dtype == "float32" and device_of(config) == "cpu" and not config.is_gguf
    return plain and not elsewhere and torch.backends.mkldnn.is_available()


def _streams(config: TeacherConfig, source: Path) -> bool:
    """Whether blocks are loaded one at a time: when asked for, or when the weights do not fit into the free memory."""
    if config.memory != "auto" or config.device_map or config.quantization or config.is_gguf:
        return config.memory == "streamed"
    return not fits(source, config.dtype, device_of(config))
