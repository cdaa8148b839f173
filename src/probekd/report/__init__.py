"""The report: one self-contained HTML page about a run."""

from probekd.report.page import write_report

__all__ = ["write_report"]
