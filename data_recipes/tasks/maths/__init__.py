"""Maths: generated problems, and a judge of answers that cannot be stalled or subverted."""

from m1.data_recipes.tasks.maths.families import MATHS_FAMILIES, GivenMaths, judge_maths

__all__ = ["MATHS_FAMILIES", "GivenMaths", "judge_maths"]
