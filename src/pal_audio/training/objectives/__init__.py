"""Objectives: what a stage learns by. A new one is a module here and a line in `OBJECTIVES`."""

from collections.abc import Callable

from pal_audio.training.objectives.answer import AnswerObjective
from pal_audio.training.objectives.base import Objective

OBJECTIVES: dict[str, Callable[..., Objective]] = {"answer": AnswerObjective}

__all__ = ["OBJECTIVES", "AnswerObjective", "Objective"]
