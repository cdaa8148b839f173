"""The kinds of students: how a network and its tokenizer answer a row. One file each, and one line in ``KINDS``."""

from __future__ import annotations

from probekd.config import KindName
from probekd.student.kinds.base import StudentKind
from probekd.student.kinds.cut import Cut
from probekd.student.kinds.head import Head
from probekd.student.kinds.label_token import LabelToken
from probekd.student.kinds.option_likelihood import OptionLikelihood
from probekd.student.kinds.static import Static

KINDS: dict[KindName, type[StudentKind]] = {
    "head": Head,
    "label_token": LabelToken,
    "option_likelihood": OptionLikelihood,
    "cut": Cut,
    "static": Static,
}

__all__ = ["KINDS", "StudentKind", "kind_named"]


def kind_named(name: KindName) -> type[StudentKind]:
    """The kind of a name."""
    return KINDS[name]
