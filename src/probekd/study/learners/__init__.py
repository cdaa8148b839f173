"""Learners: the kinds of students as a study trains them."""

from probekd.study.learners.base import Learner, Lesson, Trained, Tried
from probekd.study.learners.static import StaticLearner
from probekd.study.learners.trained import TrainedLearner

__all__ = ["Learner", "Lesson", "StaticLearner", "Trained", "TrainedLearner", "Tried"]
