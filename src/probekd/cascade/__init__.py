"""The cascade: a student answers what it is sure of, and hands the rest to the teacher's probe."""
