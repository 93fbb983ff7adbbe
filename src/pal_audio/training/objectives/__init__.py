"""Objectives: what a stage learns by. A new one is a module here and a line in `OBJECTIVES`."""

from collections.abc import Callable
from typing import Any

from pal_audio.training.objectives.answer import AnswerObjective
from pal_audio.training.objectives.base import Objective
from pal_audio.training.objectives.ctc import CtcObjective
from pal_audio.training.objectives.events import EventsObjective
from pal_audio.training.objectives.events_ctc import EventsCtcObjective
from pal_audio.training.objectives.tags import TagsObjective
from pal_audio.training.objectives.text import TextObjective

OBJECTIVES: dict[str, Callable[..., Objective[Any]]] = {
    "answer": AnswerObjective,
    "text": TextObjective,
    "ctc": CtcObjective,
    "tags": TagsObjective,
    "events": EventsObjective,
    "events-ctc": EventsCtcObjective,
}

__all__ = [
    "OBJECTIVES",
    "AnswerObjective",
    "CtcObjective",
    "EventsCtcObjective",
    "EventsObjective",
    "Objective",
    "TagsObjective",
    "TextObjective",
]
