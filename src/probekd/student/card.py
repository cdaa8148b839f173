"""The README.md of a student directory."""

from __future__ import annotations

from probekd.student.model import INFO_FILE, StudentInfo

_CLASSIFICATION = """```python
from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/directory", truncation=True, max_length={max_length})
classify("some text")
```"""

_MULTIPLE_CHOICE = """```python
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
model = AutoModelForMultipleChoice.from_pretrained("path/to/this/directory")
question, options = "some question", ["one option", "another option"]
cut = {{"truncation": "only_first", "max_length": {max_length}}}
pairs = tokenizer([question] * len(options), options, padding=True, return_tensors="pt", **cut)
with torch.inference_mode():
    logits = model(**{{name: tensor[None] for name, tensor in pairs.items()}}).logits  # (1, options)
print(options[logits.argmax()])
```"""

_CARD = """---
library_name: transformers
pipeline_tag: {pipeline_tag}
tags: [probekd, knowledge-distillation]
---

# {title}

{base_model}, trained by probekd with the method `{method}` on {num_labels} labelled and {num_pool} unlabelled rows of
the task `{task}` (seed {seed}). `{info_file}` has the rest; probekd is not needed to use the model.

{usage}
"""


def model_card(info: StudentInfo) -> str:
    """A short model card with the code that loads the student."""
    classification = info.kind == "classification"
    usage = _CLASSIFICATION if classification else _MULTIPLE_CHOICE
    return _CARD.format(
        pipeline_tag="text-classification" if classification else "multiple-choice",
        title=f"Student for {info.task}",
        base_model=info.base_model,
        method=info.method,
        num_labels=info.num_labels_used,
        num_pool=info.num_pool_rows,
        task=info.task,
        seed=info.seed,
        info_file=INFO_FILE,
        usage=usage.format(max_length=info.max_length),
    )
