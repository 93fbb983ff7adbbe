"""Where shards lie: a folder with its index, a glob, or one file.

    DIR/000000.tar     see `shard_reader`
    DIR/shards.json    of each shard its name, number of examples, bytes and SHA-256; written last

Shards of others have no index; every header of theirs is gone through once to count the examples.
"""

import json
import warnings
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from pal_audio.config import StrictConfig, one_line
from pal_audio.data.shard_reader import Shard, ShardReader, open_file
from pal_audio.errors import PalError

UNFINISHED = ".unfinished"  # lies in a folder while it is being written
INDEX, FORMAT = "shards.json", 1  # the format is to be raised whenever an older reader would misread a newer shard
MAX_INDEX_BYTES = 2**26


class ShardEntry(StrictConfig):
    """A shard in the index."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+\.tar$")]
    num_examples: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class ShardIndex(StrictConfig):
    """What `shards.json` holds."""

    format: int
    num_examples: int = Field(ge=1)
    shards: list[ShardEntry] = Field(min_length=1)


def find_shards(where: str) -> list[Shard]:
    """Shards of a folder, of a glob or of one file, in the order of their names.

    Args:
        where: a path, or an address that fsspec knows. Where a folder has an index, it decides which files count, and that they
            are those. Without one, every shard is gone through once to count its examples.

    Raises:
        PalError: nothing is there, the index is damaged, or a shard that has none is no plain tar.
    """
    remote = "://" in where
    pattern = any(letter in where for letter in "*?[") and (remote or not Path(where).exists())
    folder = where.rstrip("/")
    if not pattern and not folder.endswith(".tar"):
        if not remote and not Path(where).is_dir():
            raise PalError(f"no such folder of shards {where}; `pal data shard` writes one")
        if not remote and (Path(where) / UNFINISHED).exists():
            raise PalError(f"{where}: these shards are not finished; run `pal data shard` again with --overwrite")
        index = _read_index(f"{folder}/{INDEX}")
        if index is not None:
            shards = [Shard(f"{folder}/{item.name}", item.num_examples, item.bytes, item.sha256) for item in index.shards]
            for shard in () if remote else shards:  # now, not when its turn comes after a day of training
                if not Path(shard.path).is_file() or Path(shard.path).stat().st_size != shard.bytes:
                    raise PalError(f"shard {shard.path}: it is missing, or has not the {shard.bytes} bytes that the index says")
            return shards
    if not remote and not pattern:
        paths = sorted(str(path) for path in Path(where).glob("*.tar")) if Path(where).is_dir() else [where]
    else:
        paths = _matching(where if pattern or folder.endswith(".tar") else f"{folder}/*.tar")
    if not paths:
        raise PalError(f"{where}: no .tar here")
    found = []
    for path in paths:
        shard = _counted(path)
        if shard.num_examples:
            found.append(shard)
        else:
            warnings.warn(f"shard {path}: it holds no example and is passed over", stacklevel=2)
    if not found:
        raise PalError(f"{where}: no shard here holds an example")
    return found


def _matching(pattern: str) -> list[str]:
    from datasets.data_files import resolve_pattern  # here, since it takes a second to import

    try:
        return sorted(resolve_pattern(pattern, base_path=""))
    except (OSError, ValueError, ImportError) as error:
        raise PalError(f"shards {pattern}: nothing found ({' '.join(str(error).split())})") from error


def _read_index(path: str) -> ShardIndex | None:
    try:
        with open_file(path) as file:
            content = file.read(MAX_INDEX_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ImportError) as error:
        raise PalError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if len(content) > MAX_INDEX_BYTES:
        raise PalError(f"{path}: over the limit of {MAX_INDEX_BYTES} bytes; this is no index of shards")
    mend = "write the shards again by `pal data shard`"
    try:
        values = json.loads(content)
        if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
            raise PalError(f"{path}: format {values['format']}, this version reads {FORMAT}; {mend}")
        index = ShardIndex.model_validate(values)
    except ValidationError as error:
        raise PalError(f"{path}: damaged ({one_line(error)}); {mend}") from error
    except PalError:
        raise
    except (ValueError, RecursionError) as error:
        raise PalError(f"{path}: damaged, it is not JSON; {mend}") from error
    if index.num_examples != sum(item.num_examples for item in index.shards):
        raise PalError(f"{path}: damaged, its numbers of examples do not add up; {mend}")
    for what, values in (("name", [item.name for item in index.shards]), ("content", [item.sha256 for item in index.shards])):
        if len(set(values)) < len(values):
            raise PalError(f"{path}: damaged, two shards have the same {what}; {mend}")
    return index


def _counted(path: str) -> Shard:
    with ShardReader(Shard(path, 0)) as reader:
        return Shard(path, sum(1 for _ in reader.skip_all()), reader.num_bytes)
