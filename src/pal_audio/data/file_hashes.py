"""SHA-256 of files, and a record of them, so that a hundred thousand sound files are read once and not whenever a run begins.

A recorded hash holds as long as a file's size, its time of change and its inode's time of change are the recorded ones. A file
that changed just before it was read is not recorded, since it might change again within the clock's resolution. Source: our
choice, after git's index.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from pal_audio.data.cores import num_cores
from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError

MAX_BYTES = 2**29
_BLOCK = 2**20
_TOGETHER = 64  # of many files: a task for each takes longer than to read a short one
_YOUNG_NS = 2 * 10**9

Stamp = tuple[int, int, int]


def hash_file(path: str) -> str:
    """SHA-256 of a file.

    Raises:
        PalError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise PalError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


class FileHashes:
    """Hashes by path.

    Args:
        record: a JSON file that `save` has written; it may be missing.

    Raises:
        PalError: it is damaged.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._of_now: dict[str, str] = {}
        if record.is_file():
            try:
                if record.stat().st_size > MAX_BYTES:
                    raise ValueError(f"over {MAX_BYTES} bytes")
                rows: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
                self._known = {str(path): ((row[0], row[1], row[2]), str(row[3])) for path, row in rows.items()}
            except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                raise PalError(f"{record}: damaged; delete it, and the sound files are read again") from error

    def of(self, path: str) -> str:
        """The hash of a file as it was when this was first asked.

        Raises:
            PalError: it cannot be read.
        """
        if path not in self._of_now:
            stamp, young = _stamp(path)
            known = self._known.get(path)
            if known is None or known[0] != stamp:
                known = (stamp, hash_file(path))
                self._known.pop(path, None)
                if not young:
                    self._known[path] = known
            self._of_now[path] = known[1]
        return self._of_now[path]

    def of_all(self, paths: Iterable[str]) -> dict[str, str]:
        """The hashes of files, read by all cores."""
        distinct = list(dict.fromkeys(paths))
        num_threads = num_cores()
        size = max(1, min(_TOGETHER, len(distinct) // (4 * num_threads)))
        groups = [distinct[start : start + size] for start in range(0, len(distinct), size)]
        with ThreadPoolExecutor(num_threads) as threads:
            hashes = threads.map(lambda group: [self.of(path) for path in group], groups)
            return dict(zip(distinct, chain.from_iterable(hashes), strict=True))

    def save(self) -> None:
        """Write the record."""
        write_text(self.record, json.dumps({path: [*stamp, digest] for path, (stamp, digest) in self._known.items()}))


def _stamp(path: str) -> tuple[Stamp, bool]:
    """Size and times of a file, and whether it changed a moment ago."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise PalError(f"{path}: cannot be read: {error.strerror}") from error
    newest = max(found.st_mtime_ns, found.st_ctime_ns)
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns), time.time_ns() - newest < _YOUNG_NS
