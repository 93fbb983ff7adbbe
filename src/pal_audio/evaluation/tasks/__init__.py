"""What `pal eval` can ask: one file a family, one line each in the registry."""

from __future__ import annotations

from pal_audio.config import lookup
from pal_audio.evaluation.tasks import (
    answers,
    captions,
    choices,
    clothoaqa,
    digits,
    esc,
    folder,
    fsd50k,
    ltu,
    table,
    transcription,
    vggsound,
)
from pal_audio.evaluation.tasks.base import Task

_ALL = (
    *esc.TASKS,
    *fsd50k.TASKS,
    *vggsound.TASKS,
    *folder.TASKS,
    *table.TASKS,
    *captions.TASKS,
    *choices.TASKS,
    *clothoaqa.TASKS,
    *transcription.TASKS,
    *digits.TASKS,
    *ltu.TASKS,
    *answers.TASKS,
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def known_task(name: str) -> Task:
    """A task by name.

    Raises:
        PalError: there is none of that name; the nearest is given.
    """
    return lookup(TASKS, name, f"no task is named {name!r}")


__all__ = ["TASKS", "Task", "known_task"]
