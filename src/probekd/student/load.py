"""Load a student's checkpoint and tokenizer; what cannot work is refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from probekd.config import StudentConfig
from probekd.errors import ConfigError, ModelError
from probekd.student.lora import merged, with_adapter
from probekd.tasks.base import Kind
from probekd.teacher.blocks import first_blocks
from probekd.teacher.load import quiet_transformers

HEADS: dict[Kind, tuple[Any, Any]] = {
    "classification": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    "multiple_choice": (AutoModelForMultipleChoice, MODEL_FOR_MULTIPLE_CHOICE_MAPPING),
}


@contextmanager
def _as_model_error(model: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        mend = "give a Hub id or a directory with config.json, model.safetensors and a tokenizer"
        if "custom code" in reason:
            mend = "if you trust it, allow it with --trust-remote-code, or student.trust_remote_code in a config"
        raise ModelError(f"student {model}: cannot be loaded ({reason}); {mend}") from error


def _in_float32(auto: Any, model: str | Path, architecture: Any, config: StudentConfig) -> tuple[Any, set[str]]:
    """A network of an auto class, and the names of weights that the checkpoint lacks."""
    with _as_model_error(model), quiet_transformers():
        network, info = auto.from_pretrained(
            model, config=architecture, dtype=torch.float32, output_loading_info=True, **_source(config)
        )
    return network, set(info["missing_keys"])


def _source(config: StudentConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def read_tokenizer(model: str | Path, config: StudentConfig) -> Any:
    """The checkpoint's tokenizer as it is.

    Raises:
        ModelError: there is none.
    """
    with _as_model_error(model), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(model, **_source(config))
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # Transformers 5 makes up an empty tokenizer for a BERT without tokenizer files: every word would be unknown.
        raise ModelError(f"student {model}: it has no tokenizer files (tokenizer.json or vocab.txt); add them")
    return tokenizer


def load_tokenizer(model: str | Path, config: StudentConfig) -> Any:
    """The checkpoint's tokenizer, padding on the right and with a pad token.

    That is its end token where it has none, or one that was added to it and never to the network.

    Raises:
        ModelError: there is no tokenizer, or it has neither a pad nor an end token.
    """
    tokenizer = read_tokenizer(model, config)
    # Left padding shifts learned positions, and decoder heads look for the last token from the right.
    tokenizer.padding_side = "right"
    words = getattr(load_config(model, config).get_text_config(), "vocab_size", None) or len(tokenizer)
    if tokenizer.pad_token is None or tokenizer.pad_token_id >= words:
        if tokenizer.eos_token is None:
            raise ModelError(f"student {model}: its tokenizer has no pad and no end token; add a pad token to it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(model: str | Path, config: StudentConfig) -> Any:
    """The checkpoint's Transformers config; raises ModelError where it is none, or an encoder-decoder's."""
    with _as_model_error(model), quiet_transformers():
        architecture = AutoConfig.from_pretrained(model, **_source(config))
    if architecture.is_encoder_decoder:
        raise ModelError(
            f"student {model}: {architecture.model_type} is an encoder-decoder; take an encoder such as BERT, MiniLM, "
            "DeBERTa or ModernBERT"
        )
    return architecture


def check_classifier(model: str | Path, kind: Kind, config: StudentConfig) -> None:
    """Raise what ``load_classifier`` raises of an architecture and of what is asked of it, without weights."""
    _check_options(HEADS[kind][0], _classifier_config(model, kind, config), model, config)


def check_decoder(model: str | Path, config: StudentConfig) -> None:
    """Raise what ``load_decoder`` raises of an architecture and of what is asked of it, without weights."""
    _check_options(AutoModelForCausalLM, _decoder_config(model, config), model, config)


def check_blocks(model: str | Path, config: StudentConfig) -> None:
    """Raise what ``first_blocks_of`` and ``load_blocks`` raise of an architecture and of what is asked of it, without weights."""
    auto = AutoModelForSequenceClassification if has_classifier(model, config) else AutoModel
    _check_options(auto, _blocks_config(model, config), model, config)


def _check_options(auto: Any, architecture: Any, model: str | Path, config: StudentConfig) -> None:
    # Code that ships with a checkpoint need not be able to do without weights.
    if (config.lora is not None or config.gradient_checkpointing) and not config.trust_remote_code:
        with torch.device("meta"), quiet_transformers():
            network = auto.from_config(architecture)
            check_checkpointing(network, model, config)
            if config.lora is not None:
                with_adapter(network, config.lora, model=model)


def check_checkpointing(network: Any, model: str | Path, config: StudentConfig) -> None:
    """Raise ConfigError where activations are to be computed anew, and the network's code in Transformers cannot."""
    if config.gradient_checkpointing and not network.supports_gradient_checkpointing:
        raise ConfigError(
            f"student.gradient_checkpointing: {network.config.model_type} ({model}) cannot compute its activations anew; "
            "leave it out, and save memory by gradient_accumulation"
        )


def _classifier_config(model: str | Path, kind: Kind, config: StudentConfig) -> Any:
    """The config of an architecture that has the head of ``kind``; raises ModelError where it has none."""
    auto, mapping = HEADS[kind]
    architecture = load_config(model, config)
    if type(architecture) not in mapping and auto.__name__ not in getattr(architecture, "auto_map", {}):
        known = ", ".join(sorted({entry.model_type for entry in mapping}))
        raise ModelError(
            f"student {model}: {architecture.model_type} has no {auto.__name__.removeprefix('AutoModelFor')} head in "
            f"Transformers, which a task of kind {kind} needs; these have one: {known}"
        )
    return architecture


def _decoder_config(model: str | Path, config: StudentConfig) -> Any:
    """The config of a language model that reads from left to right; raises ModelError where it is none."""
    architecture = load_config(model, config)
    if not is_decoder(architecture) and "AutoModelForCausalLM" not in getattr(architecture, "auto_map", {}):
        raise ModelError(
            f"student {model}: {architecture.model_type} is not a decoder, so it cannot answer in words; take a decoder "
            "such as SmolLM2 or Qwen, or student.kind: head"
        )
    return architecture


def _blocks_config(model: str | Path, config: StudentConfig) -> Any:
    """The config of a model whose first blocks are one too; raises ModelError where they are not."""
    architecture = load_config(model, config)
    if not is_decoder(architecture):
        raise ModelError(
            f"student {model}: {architecture.model_type} is not a decoder, whose first blocks are a model of their own; "
            "take a student of kind head"
        )
    return architecture


def load_classifier(
    model: str | Path, kind: Kind, labels: tuple[str, ...], pad_token_id: int, config: StudentConfig
) -> Any:
    """The checkpoint in float32 with the head of ``kind``; a head that the checkpoint lacks starts at random.

    Raises:
        ModelError: not a model, an architecture without such a head, or encoder weights that are missing.
    """
    auto, architecture = HEADS[kind][0], _classifier_config(model, kind, config)
    if kind == "classification":
        architecture.num_labels = len(labels)
        architecture.id2label = dict(enumerate(labels))
        architecture.label2id = {label: index for index, label in enumerate(labels)}
        architecture.problem_type = "single_label_classification"
    if architecture.pad_token_id is None:
        architecture.pad_token_id = pad_token_id
    with _as_model_error(model), quiet_transformers():
        # A checkpoint fine-tuned on another label set brings a head of another size: the student gets a new one.
        network, info = auto.from_pretrained(
            model,
            config=architecture,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_source(config),
        )
    _check_weights(model, network.base_model_prefix, info["missing_keys"])
    if config.lora is None:
        return network
    return with_adapter(network, config.lora, heads=_heads(network, info["missing_keys"]), model=model)


def save_network(network: Any, tokenizer: Any, directory: Path) -> None:
    """Write a plain Transformers directory; an adapter becomes part of the weights."""
    with quiet_transformers():
        merged(network).cpu().save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def load_decoder(model: str | Path, config: StudentConfig) -> Any:
    """The checkpoint in float32 as a language model that reads from left to right.

    Raises:
        ModelError: not such a model, or weights that are missing.
    """
    architecture = _decoder_config(model, config)
    auto: Any = AutoModelForCausalLM
    network, missing = _in_float32(auto, model, architecture, config)
    _check_weights(model, "", missing)
    return network if config.lora is None else with_adapter(network, config.lora, model=model)


def load_blocks(model: str | Path, classifier: bool, config: StudentConfig) -> Any:
    """A cut student's network in float32: a sequence classifier, or the body, whose head lies beside it.

    Raises:
        ModelError: not such a model, or weights that are missing.
    """
    architecture = load_config(model, config)
    auto: Any = AutoModelForSequenceClassification if classifier else AutoModel
    network, missing = _in_float32(auto, model, architecture, config)
    _check_weights(model, "", missing)
    return network


def first_blocks_of(model: str | Path, depth: int, outputs: int | None, config: StudentConfig) -> Any:
    """A decoder's first blocks in float32, with its final norm.

    Args:
        model: The whole model.
        depth: How many blocks.
        outputs: Scores of the sequence classifier that is wanted, whose head is left as it comes; None = the body alone.
        config: Revision and trust_remote_code.

    Raises:
        ModelError: not a decoder, or weights that are missing.
    """
    architecture = _blocks_config(model, config)
    first_blocks(architecture.get_text_config(), depth)
    if outputs is not None:
        architecture.num_labels = outputs
    auto: Any = AutoModel if outputs is None else AutoModelForSequenceClassification
    network, missing = _in_float32(auto, model, architecture, config)
    _check_weights(model, "", missing - {"score.weight"})
    return network


def has_classifier(model: str | Path, config: StudentConfig) -> bool:
    """Whether Transformers has a sequence classifier of a decoder's architecture that is one linear map ``score``."""
    architecture = load_config(model, config)
    if type(architecture) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return False
    with torch.device("meta"), quiet_transformers():
        network = AutoModelForSequenceClassification.from_config(architecture)
    head = getattr(network, "score", None)
    return isinstance(head, torch.nn.Linear) and head.bias is None


def load_encoder(model: str | Path, config: StudentConfig) -> Any:
    """The bare encoder in float32, in evaluation mode.

    Raises:
        ModelError: not a model, or encoder weights that are missing.
    """
    architecture = load_config(model, config)
    network, missing = _in_float32(AutoModel, model, architecture, config)
    _check_weights(model, "", missing)
    return network.eval()


def _heads(network: Any, missing: set[str]) -> set[str]:
    """Modules outside the body, and those inside it that the checkpoint lacks (a pooler that was never saved)."""
    outside = {name for name, module in network.named_children() if next(module.parameters(), None) is not None}
    inside = {key.rpartition(".")[0] for key in missing if key.startswith(network.base_model_prefix)}
    return outside - {network.base_model_prefix} | inside


def _check_weights(model: str | Path, prefix: str, missing: set[str]) -> None:
    """Refuse a body that would start at random; heads, and poolers that were never saved, are expected to."""
    body = sorted(key for key in missing if key.startswith(prefix) and "pooler" not in key)
    if body:
        raise ModelError(
            f"student {model}: {len(body)} weights of the model are missing, such as {body[0]}; the weights do not "
            "belong to this config.json"
        )


def is_decoder(architecture: Any) -> bool:
    """Whether a Transformers config is of a decoder, whose last token alone has seen the whole text."""
    return type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING and type(architecture) not in MODEL_FOR_MASKED_LM_MAPPING


def usable_length(tokenizer: Any, architecture: Any, wanted: int) -> int:
    """The longest input in tokens: ``wanted``, or less where the tokenizer or the position table ends earlier."""
    positions = getattr(architecture, "max_position_embeddings", None) or wanted
    return int(min(wanted, tokenizer.model_max_length, positions))
