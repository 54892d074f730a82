"""Learning rate as a pure function of the step.

Shape: linear warm-up, then constant, then cosine to the final rate. M1 section 2.1 gives constant
then decay (2.5T of 7.5T tokens constant); the cosine is ours, the paper names no shape.
"""

import math

from m1.stages.settings import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Rate of the 0-based `step`."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    constant_until = max(settings.warmup_steps, round(settings.constant_fraction * settings.steps))
    if step < constant_until:
        return settings.learning_rate
    progress = (step - constant_until) / max(1, settings.steps - constant_until)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    span = settings.learning_rate - settings.final_learning_rate
    return settings.final_learning_rate + span * cosine
