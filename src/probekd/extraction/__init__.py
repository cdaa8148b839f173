"""extract: run the teacher over a task's rows and fill state stores, shard by shard, so that a killed run goes on."""

from probekd.extraction.stores import extract
from probekd.extraction.survey import Survey, default_positions, survey_task

__all__ = ["Survey", "default_positions", "extract", "survey_task"]
