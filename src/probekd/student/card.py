"""The README.md of a student directory."""

from __future__ import annotations

from probekd.student.kinds import StudentKind
from probekd.student.model import INFO_FILE, StudentInfo

_CARD = """---
library_name: transformers
pipeline_tag: {pipeline_tag}
tags: [probekd, knowledge-distillation]
---

# {title}

{base_model}, trained by probekd with the method `{method}` on {num_labels} labelled and {num_pool} unlabelled rows of
the task `{task}` (seed {seed}). `{info_file}` has the rest; probekd is not needed to use the model.

```python
{usage}
```

{calibration}
"""


def model_card(info: StudentInfo, kind: StudentKind) -> str:
    """A short model card with the code that loads the student."""
    return _CARD.format(
        pipeline_tag=kind.pipeline_tag,
        title=f"Student for {info.task}",
        base_model=info.base_model,
        method=info.method,
        num_labels=info.num_labels_used,
        num_pool=info.num_pool_rows,
        task=info.task,
        seed=info.seed,
        info_file=INFO_FILE,
        usage=kind.usage,
        calibration=_calibration(info),
    )


def _calibration(info: StudentInfo) -> str:
    """What the model's confidence is worth."""
    found = info.calibration
    if not info.history:
        return "It was not trained further: it is a probe of its teacher, and its probabilities are calibrated as the probe's."
    if found is None:
        return "Its probabilities are not calibrated: there were no held-out labels to do so with."
    rows = f"{found.n} {found.rows.replace('held out', 'held-out')} rows"
    effect = f"on {rows} this took its expected calibration error from {found.ece_before:.3f} to {found.ece_after:.3f}"
    if found.folded:
        return f"Its probabilities are calibrated: a temperature of {found.temperature:.3f} is part of its weights; {effect}."
    return (
        f"Divide its logits by {found.temperature:.3f} before the softmax over the options to get calibrated "
        f"probabilities, as `probekd predict` does; {effect}."
    )
