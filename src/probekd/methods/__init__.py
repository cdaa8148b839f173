"""Methods: what a student learns from, as targets made of what the teacher, its probe and the student itself say."""

from probekd.methods.recipes import RECIPES, Recipe, cares_of, has_teacher, views_of
from probekd.methods.teacher import TEACHER_VIEWS, TeacherReading
from probekd.methods.views import Evidence, View, ViewName, padded, student_view, widest

__all__ = [
    "RECIPES",
    "TEACHER_VIEWS",
    "Evidence",
    "Recipe",
    "TeacherReading",
    "View",
    "ViewName",
    "cares_of",
    "has_teacher",
    "padded",
    "student_view",
    "views_of",
    "widest",
]
