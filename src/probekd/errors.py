"""Errors that a user can mend: each message says what is wrong, where, and how to put it right."""

from __future__ import annotations


class ProbeKDError(Exception):
    """Base of every error that comes from the user's input or machine; the command line exits with status 2."""


class ConfigError(ProbeKDError):
    """A run or task file that cannot be used as written."""


class DataError(ProbeKDError):
    """A row, split or label set that cannot be used; names the file and the row."""


class ModelError(ProbeKDError):
    """A teacher or student that cannot be loaded or whose states cannot be trusted."""


class DivergedError(ModelError):
    """A training whose loss became infinite or nan."""


class StoreError(ProbeKDError):
    """A cache or run directory that is damaged, foreign, or made by another version or config."""


def first_line(error: BaseException) -> str:
    """What an error says, without its traceback and its advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
