"""Silence for libraries that tell a user of what only their developers can mend."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from probekd.teacher.load import quiet_transformers


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the exporters' progress and advice; real problems are raised by us."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
