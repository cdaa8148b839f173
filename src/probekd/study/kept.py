"""A trained student's answers on disk: what was dear to make and is asked for twice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from probekd.files import read_json, replacing, save_tensors, write_json
from probekd.study.learners import Trained, Tried


def save_trained(place: Path, trained: Trained) -> None:
    """Write a directory."""
    flat = torch.from_numpy(np.concatenate(trained.probs))
    rest = {
        "counts": [len(p) for p in trained.probs],
        "chosen": dict(trained.chosen),
        "tried": [asdict(one) for one in trained.tried],
        "steps": trained.steps,
        "seconds": trained.seconds,
    }
    with replacing(place) as unfinished:
        unfinished.mkdir()
        save_tensors({"probs": flat}, unfinished / "probs.safetensors", {})
        write_json(unfinished / "trained.json", rest)


def load_trained(place: Path) -> Trained:
    """What ``save_trained`` wrote."""
    from safetensors.numpy import load_file

    rest = read_json(place / "trained.json")
    flat = load_file(place / "probs.safetensors")["probs"]
    ends = np.cumsum(rest["counts"])[:-1]
    return Trained(
        probs=tuple(np.split(flat, ends)),
        chosen=rest["chosen"],
        tried=tuple(Tried(**one) for one in rest["tried"]),
        steps=rest["steps"],
        seconds=rest.get("seconds", 0.0),
    )
