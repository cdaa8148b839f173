"""The frozen embeddings of a task's rows by a student's checkpoint: made once, kept on disk, shared by all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from probekd.config import StudentConfig
from probekd.files import replacing, save_tensors
from probekd.progress import Progress, working
from probekd.student.embed import embed_encoded
from probekd.student.kinds.static import Static
from probekd.study.directory import StudyDirectory
from probekd.study.universe import Universe
from probekd.tasks.base import Example, Task, content_hash
from probekd.teacher.load import model_fingerprint, quiet_transformers, resolve_model

ROWS_AT_ONCE = 256


def embeddings_of(
    universe: Universe, student: StudentConfig, directory: StudyDirectory, progress: Progress
) -> Mapping[str, np.ndarray]:
    """Embedding (1, d), or (k, d) of options, of every row of a universe by id; from disk where they are there already."""
    from safetensors.numpy import load_file

    rows = (*universe.task.rows("train", "unlabelled", "test"), *universe.validation)
    versions = [version(name) for name in ("torch", "transformers")]
    checkpoint = model_fingerprint(resolve_model(student.model, student.revision))
    key = content_hash(universe.content, checkpoint, student.max_length, versions)[:24]
    path = directory.place("embeddings", f"{key}.safetensors")
    with directory.held(f"embeddings-{key}", wait=True):
        if not path.is_file():
            _write(path, embed_rows(universe.task, rows, student, progress))
    vectors = load_file(path)["vectors"]
    return {e.id: vector for e, vector in zip(rows, vectors, strict=True)}


def embed_rows(task: Task, rows: Sequence[Example], student: StudentConfig, progress: Progress) -> np.ndarray:
    """Embeddings (n, 1, d) or (n, k, d) as ``frozen_embeddings``, a few rows at a time."""
    kind = Static.load(student.model, task, student)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind.network.to(device)
    parts: list[np.ndarray] = []
    with working(progress, "embedding rows", len(rows), "rows"), quiet_transformers():
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            parts.append(embed_encoded(kind.network.embedder, kind.tokenizer, kind.encode(some)))
            progress.advance(len(some))
    widest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, widest - p.shape[1]), (0, 0))) for p in parts])


def _write(path: Path, vectors: np.ndarray) -> None:
    with replacing(path) as unfinished:
        save_tensors({"vectors": torch.from_numpy(vectors)}, unfinished, {})
