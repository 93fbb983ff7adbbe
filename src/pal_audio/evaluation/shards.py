"""Several processes on one evaluation: each asks every N-th batch in a folder of its own, and one joins what they wrote.

Batches are those of an undivided evaluation, so the joined answers have its bytes. The processes need not know of each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.folder import locked, write_bytes
from pal_audio.errors import PalError
from pal_audio.evaluation.store import ANSWERS, ITEMS, RUN, batches, read_items, read_run, refuse_another, resume_point


def shard_folder(folder: Path, index: int, num: int) -> Path:
    """Where a process writes: OUT itself where there is one."""
    return folder if num == 1 else folder / f"shard-{index}-of-{num}"


def join_shards(folder: Path) -> None:
    """Put the shards of a folder together, where there are any, in the order of an undivided evaluation.

    Raises:
        PalError: one is missing, unfinished, at work, or of another evaluation.
    """
    found = sorted(folder.glob("shard-*-of-*"))
    if not found:
        return
    info = read_run(found[0])
    num = info.num_shards
    folders = [shard_folder(folder, index, num) for index in range(num)]
    if stray := [path.name for path in found if path not in folders]:
        raise PalError(f"{folder}: {found[0].name} and {stray[0]} are not of one evaluation; delete those of the other")
    missing = [index for index, path in enumerate(folders) if not (path / RUN).is_file()]
    if missing:
        raise PalError(f"{folder}: {folders[missing[0]].name} is missing; run it with --shard {missing[0]}/{num}")
    with contextlib.ExitStack() as locks:
        for path in (folder, *folders):
            locks.enter_context(locked(path))
        for path in folders:
            refuse_another(path, read_run(path), info)
        whole = info.model_copy(update={"num_shards": 1})
        if (folder / RUN).is_file():
            refuse_another(folder, read_run(folder), whole)
        every = batches(info, read_items(folders[0], info))
        parts: list[Iterator[bytes]] = []
        for index, path in enumerate(folders):
            own = every[index::num]
            if resume_point(path / ANSWERS, own) < len(own):
                raise PalError(f"{path}: unfinished; go on with it by --shard {index}/{num} --resume")
            lines = (path / ANSWERS).read_bytes() if own else b""
            parts.append(iter(lines.splitlines(keepends=True)))  # of bytes: text has other line ends inside answers
        joined = [next(parts[number % num]) for number, batch in enumerate(every) for _ in batch.keys]
        write_bytes(folder / ITEMS, (folders[0] / ITEMS).read_bytes())
        write_bytes(folder / ANSWERS, b"".join(joined))
        write_bytes(folder / RUN, (whole.model_dump_json(indent=2) + "\n").encode())
