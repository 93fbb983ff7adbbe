"""What `pal eval` can ask: one file a family, one line each in the registry."""

from __future__ import annotations

import difflib

from pal_audio.errors import PalError
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
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TASKS)}"
        raise PalError(f"no task is named {name!r}; {mend}")
    return TASKS[name]


__all__ = ["TASKS", "Task", "known_task"]
