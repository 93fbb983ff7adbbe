"""A folder that we make: one writer at a time, and files that are whole or not there."""

from __future__ import annotations

import os
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


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all (temporary name, sync, rename, sync of the folder)."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    if sys.platform != "win32":  # a folder cannot be opened there
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
