"""One writer at a time for a folder that we make."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pal_audio.errors import PalError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second writer out; the system lets go of the lock however we end. Windows: nothing is checked."""
    with open(folder / LOCK, "w", encoding="utf-8") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PalError(f"{folder} is being written by another process; wait for it or choose another folder") from error
        yield
