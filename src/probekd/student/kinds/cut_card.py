"""The code of a cut student's model card: how plain Transformers reads it."""

from __future__ import annotations

from probekd.config import Layout, Position
from probekd.prompts import PromptEncoder
from probekd.student.kinds.decoder import example_of

# The classes of a row, from a sequence classifier.
_PIPELINE = """from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/directory")
prompt = {prompt!r}
print(classify(prompt, add_special_tokens={special})[0]["label"])"""

# One option at a time, from a sequence classifier.
_SCORER = """import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForSequenceClassification.from_pretrained("path/to/this/directory")
prompt = {prompt!r}
options = {options!r}
with torch.inference_mode():
    texts = [tokenizer(prompt + {joiner!r} + option, add_special_tokens={special}, return_tensors="pt") for option in options]
    scores = torch.cat([model(**text).logits[0] for text in texts])
print(options[scores.argmax()])"""

# What no class of Transformers does: states in the middle of a text, means over tokens, and states before the norm.
_HEAD = """# {why}, so the directory holds the body and, beside it, its head.
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
body = AutoModel.from_pretrained("path/to/this/directory")
{no_norm}head = load_file("path/to/this/directory/head.safetensors")
prompt = {prompt!r}
options = {options!r}
"""
_STATES = """

def states_of(text):
    \"\"\"The state of each token, and where in the text the token ends.\"\"\"
    ids = tokenizer(text, add_special_tokens={special}, return_offsets_mapping=True, return_tensors="pt")
    ends = ids.pop("offset_mapping")[0, :, 1]
    with torch.inference_mode():
        return body(ids["input_ids"]).last_hidden_state[0], ends


"""
_ANSWER = """states, ends = states_of(prompt)
scores = head["weight"] @ states[ends.nonzero().max()]{bias}
print(options[scores[: len(options)].argmax()])"""
_BRANCHED = """scores = []
for option in options:
    states, ends = states_of(prompt + {joiner!r} + option)
    scores.append(head["weight"][0] @ states[ends > len(prompt + {joiner!r})]{pooled})
print(options[torch.stack(scores).argmax()])"""
_LISTED = """states, ends = states_of(prompt)
scores, start = [], 0
for option in options:
    start = prompt.index(option, start)
    inside = (ends > start) & (ends.roll(1) < start + len(option))
    scores.append(head["weight"][0] @ states[inside]{pooled})
    start += len(option)
print(options[torch.stack(scores).argmax()])"""


_WHY: dict[Position, str] = {
    "answer": "Transformers has no sequence classifier of this architecture",
    "option_end": "No sequence classifier of Transformers reads a state in the middle of a text",
    "option_mean": "No sequence classifier of Transformers reads the mean state of an option's tokens",
}


def usage(
    prompts: PromptEncoder, *, layout: Layout, position: Position, normed: bool, classifier: bool, norm: str | None
) -> str:
    """Python code that answers a made-up row.

    Args:
        prompts: Shows the row.
        layout: See ``Reading``, as the next three.
        position: Where the head reads.
        normed: Whether after the final norm.
        classifier: Whether the directory is a sequence classifier's.
        norm: Name of the norm that is not applied, or None.
    """
    row = example_of(prompts.task)
    shared = position != "answer"
    prompt = prompts.context(row, layout) + ("" if shared or layout == "branched" else prompts.cue)
    values = {
        "prompt": prompt,
        "options": list(row.options),
        "joiner": prompts.joiner,
        "special": not prompts.task.prompt.chat,
        "why": _WHY["answer" if position == "option_end" and layout == "branched" else position],
        "pooled": ".mean(0)" if position == "option_mean" else "[-1]",
        "bias": "" if normed else ' + head["bias"]',
        "no_norm": f'body.set_submodule("{norm}", torch.nn.Identity())  # states are read before it\n' if norm else "",
    }
    if classifier:
        return (_SCORER if shared else _PIPELINE).format(**values)
    read = _ANSWER if not shared else _BRANCHED if layout == "branched" else _LISTED
    return (_HEAD + _STATES + read).format(**values)
