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
    )
