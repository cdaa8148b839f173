"""Tiny random models of each family with their tokenizers, built from configs; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from probekd.tasks.base import Example

FAMILIES = ("llama", "llama-tied", "qwen2", "qwen3", "gemma3", "gemma2", "gpt2", "bert")
CAUSAL = FAMILIES[:-1]
# Further ways of knowing where a token stands and what it may see, for the tests of packing.
MORE_CAUSAL = ("mistral", "gpt_neox", "opt", "phi3", "qwen2-window", "mixtral", "cohere", "granite")
# Models that work out by themselves what a token sees, whatever they are told.
NOT_PACKABLE = ("bloom", "gpt_neo")
CONTEXT = 256
TEXTS = (
    "What does a cow eat? A. grass B. stones C. light Answer: A",
    "Which of these is a tool? A. hammer B. soup C. horse D. cloud E. rice Answer: E",
    "Question: Where does the sun rise? Answer: in the east",
    "Text: the red cow eats grass Label: animal. Labels: animal, tool, food.",
    "Answer: B Answer: C Answer: D Answer: the old hammer is here",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level_tokenizer(
    *, bos: str | None = "<s>", merges: bool = True, trim_offsets: bool = False, eos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE; ``merges=False`` leaves single bytes, ``eos`` appends </s> to every text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["</s>", *([bos] if bos else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 400 if merges else len(alphabet) + len(special)
    core.train_from_iterator(
        TEXTS * 4,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    around = [*([bos] if bos else []), "$A", *(["</s>"] if eos else [])]
    if len(around) > 1:
        ids = [(t, core.token_to_id(t)) for t in around if t != "$A"]
        steps.append(processors.TemplateProcessing(single=" ".join(around), special_tokens=ids))
    core.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", **({"bos_token": bos} if bos else {}))


def word_tokenizer() -> BertTokenizer:
    words = sorted({w.strip("?.,:").lower() for text in TEXTS for w in text.split()})
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789?.,:{}*'\"_")
    pieces = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{c}" for c in letters)]
    )
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=CONTEXT)


_COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "initializer_range": 0.2,
}


def build_model(family: str, vocabulary: int) -> torch.nn.Module:
    """A random model: 3 or 4 blocks, d = 32."""
    grouped = {**_COMMON, "vocab_size": vocabulary, "num_key_value_heads": 2}
    gemma = {**grouped, "head_dim": 16, "num_hidden_layers": 4, "sliding_window": 8, "query_pre_attn_scalar": 16}
    if family == "bert":
        bert = {k: v for k, v in _COMMON.items() if k not in ("bos_token_id", "eos_token_id")}
        return BertModel(BertConfig(**bert, num_hidden_layers=3, vocab_size=vocabulary))
    if family == "albert":
        albert = {k: v for k, v in _COMMON.items() if k not in ("bos_token_id", "eos_token_id")}
        size = {"embedding_size": 16, "num_hidden_layers": 3}
        return AlbertModel(AlbertConfig(**albert, **size, vocab_size=vocabulary))
    if family == "gpt2":
        size = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.2}
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, **size))
    small = {k: v for k, v in grouped.items() if k != "num_key_value_heads"}
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**grouped, num_hidden_layers=3, sliding_window=8))
    if family == "mixtral":
        experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
        return MixtralForCausalLM(MixtralConfig(**grouped, num_hidden_layers=3, **experts))
    if family == "qwen2-window":
        window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}
        return Qwen2ForCausalLM(Qwen2Config(**grouped, num_hidden_layers=4, **window))
    if family == "cohere":
        return CohereForCausalLM(CohereConfig(**grouped, num_hidden_layers=3, pad_token_id=0, logit_scale=0.25))
    if family == "granite":
        scales = {"logits_scaling": 8.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}
        return GraniteForCausalLM(GraniteConfig(**grouped, num_hidden_layers=3, **scales))
    if family == "phi3":
        return Phi3ForCausalLM(Phi3Config(**grouped, num_hidden_layers=3, pad_token_id=0))
    if family == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**small, num_hidden_layers=3))
    if family == "opt":
        size = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "init_std": 0.2}
        return OPTForCausalLM(
            OPTConfig(
                vocab_size=vocabulary, word_embed_proj_dim=32, max_position_embeddings=CONTEXT, pad_token_id=0, **size
            )
        )
    if family == "bloom":
        return BloomForCausalLM(
            BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.2)
        )
    if family == "gpt_neo":
        size = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "num_heads": 4, "window_size": 8}
        types = [[["global", "local"], 2]]
        return GPTNeoForCausalLM(
            GPTNeoConfig(
                vocab_size=vocabulary,
                max_position_embeddings=CONTEXT,
                attention_types=types,
                initializer_range=0.2,
                **size,
            )
        )
    if family == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(**gemma, layer_types=["sliding_attention", "full_attention"] * 2))
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**gemma, final_logit_softcapping=2.0, attn_logit_softcapping=20.0))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**grouped, num_hidden_layers=4, tie_word_embeddings=True))
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**grouped, head_dim=16, num_hidden_layers=3, tie_word_embeddings=False))
    tied = family == "llama-tied"
    return LlamaForCausalLM(LlamaConfig(**grouped, num_hidden_layers=3, tie_word_embeddings=tied))


def save_model(family: str, directory: Path) -> Path:
    """A model directory as ``save_pretrained`` leaves it; every norm and bias random too, so that none can hide."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tokenizer = (
            word_tokenizer()
            if family in ("bert", "albert")
            else byte_level_tokenizer(bos=None if family == "gpt2" else "<s>")
        )
        model = build_model(family, len(tokenizer))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=float("norm" in name.lower() or "ln_" in name), std=0.2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def choice_row(row_id: str, question: str, *options: str, answer: int | None = 0, subject: str = "") -> Example:
    return Example(id=row_id, question=question, options=options, answer=answer, subject=subject)
