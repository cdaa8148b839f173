"""What a model is called, and under which licence it comes where its own card says so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model by its name, without the directories of this machine, and its licence where it is known."""

    name: str
    licence: str | None = None

    @classmethod
    def of(cls, model: str | Path, revision: str | None = None) -> Origin:
        """The origin of what a directory, a file or a Hub id holds."""
        name = Path(model).name if Path(model).exists() else str(model)
        return cls(name=name, licence=licence_of(model, revision))


def licence_of(model: str | Path, revision: str | None = None) -> str | None:
    """The licence that a model's README.md names; None = it is not known here.

    The network is not asked: a model from the Hub has its card in the local cache, or its licence is not known.

    Args:
        model: A local directory or a Hub id.
        revision: Hub revision.
    """
    card = Path(model) / "README.md"
    if not Path(model).is_dir():
        card = _cached_card(str(model), revision) or card
    try:
        found = front_matter(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    # "other" is followed by a name of the licence's own.
    names = [found.get(key) for key in ("license", "license_name")]
    named = [name for name in names if isinstance(name, str) and name]
    return " ".join(named) or None


def _cached_card(model: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "README.md", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def front_matter(text: str) -> dict[str, object]:
    """The YAML mapping between the dashes at a card's head; empty where there is none that can be read."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != "---":
        return {}
    end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
    try:
        found = yaml.safe_load("\n".join(lines[1:end]))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
