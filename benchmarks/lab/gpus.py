"""Which GPUs there are, and who computes on which.

They are counted by `torch.cuda.device_count()`, which asks the driver's management library and begins nothing on them. A process
sees one alone, by its own `CUDA_VISIBLE_DEVICES`, so that no command of `pal` has to know of it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pal_audio.errors import PalError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(most: int | None = None) -> list[str]:
    """Names of the GPUs that processes may use, as `CUDA_VISIBLE_DEVICES` takes them: its words where it is set, else numbers.

    Args:
        most: so many of them, the first.

    Raises:
        PalError: there are not so many.
    """
    num = torch.cuda.device_count()
    words = [word.strip() for word in os.environ.get(VISIBLE, "").split(",") if word.strip()]
    names = words[:num] if words else [str(number) for number in range(num)]
    if most is None:
        return names
    if not 0 < most <= len(names):
        raise PalError(f"--gpus {most}: {len(names)} can be seen here; give a number from 1 to that, or leave it out for all")
    return names[:most]


@dataclass
class Places:
    """Gives each step the GPU on which the fewest run.

    Args:
        gpus: names; none where steps share whatever the machine has, or use none.
    """

    gpus: Sequence[str] = ()
    _of: dict[str, str] = field(default_factory=dict)

    def take(self, step: str) -> str | None:
        """The GPU of a step that begins now; None where there are none."""
        if not self.gpus:
            return None
        running = list(self._of.values())
        self._of[step] = min(self.gpus, key=running.count)
        return self._of[step]

    def give_back(self, step: str) -> str | None:
        """The GPU that a step had, which is free for others now."""
        return self._of.pop(step, None)
