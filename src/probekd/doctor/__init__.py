"""doctor: is a teacher read as Transformers reads it, one sequence at a time, in every mode that we have?"""

from probekd.doctor.examine import examine
from probekd.doctor.report import Check, ModeResult, Report, print_report

__all__ = ["Check", "ModeResult", "Report", "examine", "print_report"]
