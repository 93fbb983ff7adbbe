"""Tar shards in WebDataset's form, read with limits, one reader for ours and for other people's.

    KEY.json, KEY.0.flac, KEY.1.wav, ...   the files of one example lie side by side; see `shard_sample`

Nothing is ever unpacked to disk. Files are opened as `datasets` opens them (a path, hf://, and whatever else fsspec knows). Its
own reader of such tars is not used: it takes a damaged header for the end of the file, has no limit on sizes, and wants the
same files and the same JSON types in every example. Source: WebDataset's form; limits are our choice.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from pal_audio.data.shard_sample import SOUNDS, TEXTS, Sample
from pal_audio.errors import PalError

MAX_TEXT_BYTES = 2**24  # as `pal data check`
MAX_EXAMPLE_BYTES = 2**28  # a buffer holds many; an hour of 16-bit mono at 32 kHz fits
_BLOCK = 2**16


@dataclass(frozen=True)
class Shard:
    """One tar file, and what an index says of it."""

    path: str
    num_examples: int
    bytes: int | None = None
    sha256: str | None = None


def open_file(path: str) -> BinaryIO:
    """A local file, or one that fsspec knows the address of."""
    if "://" not in path:
        return open(path, "rb")
    from datasets.utils.file_utils import xopen  # retries, and knows the hub

    return xopen(path, "rb")


class _Bounded:
    """A file of which no more is read at once than an example may hold: what a header claims is no reason to reserve memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > MAX_EXAMPLE_BYTES:
            raise tarfile.ReadError(f"a header claims {num_bytes} bytes")
        return self._file.read(num_bytes)


class ShardReader:
    """Examples of one shard, forwards; what is passed over is not read.

    Args:
        shard: which.
        verify: look at the checksum first, if there is one and the file is local (a remote one would have to be fetched twice).

    Raises:
        PalError: no such file, not a plain tar, or not the one of the index.
    """

    def __init__(self, shard: Shard, verify: bool = True) -> None:
        self.shard = shard
        self.position = 0  # of the next example
        self._keys: set[str] = set()
        try:
            self._file = open_file(shard.path)
            self.num_bytes = self._file.seek(0, 2)
        except (OSError, ValueError, ImportError) as error:
            raise self._fault(f"cannot be opened ({' '.join(str(error).split())})") from error
        try:
            if shard.bytes not in (None, self.num_bytes):
                raise self._fault(f"{self.num_bytes} bytes, the index says {shard.bytes}")
            if verify and shard.sha256 is not None and "://" not in shard.path and self._hash() != shard.sha256:
                raise self._fault("its checksum is not that of the index")
            self._file.seek(0)
            self._tar = self._started()
            self._head = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, position: int, sound: bool = True) -> Sample:
        """The example at a position, counted from 0, not before the last one read.

        Args:
            position: which.
            sound: False leaves the bytes of sounds out.

        Raises:
            PalError: the shard is damaged or ends earlier, or a file is over the limit, or stands there twice.
        """
        assert position >= self.position, "a shard is read forwards"
        while self._head is not None and self.position < position:
            self._group(keep=False)
        if self._head is None:
            raise self._fault(f"it ends after {self.position} examples of {self.shard.num_examples}")
        return self._group(keep=True, sound=sound)

    def skip_all(self) -> Iterator[None]:
        """Go through every header to the end, once an example."""
        while self._head is not None:
            self._group(keep=False)
            yield

    def _group(self, keep: bool, sound: bool = True) -> Sample:
        assert self._head is not None
        key = self._head[0]
        if key in self._keys:
            raise self._fault(f"the files of {key!r} do not lie side by side, or two examples have this key")
        self._keys.add(key)
        fields: set[str] = set()
        files: dict[str, bytes] = {}
        num_bytes = 0
        while self._head is not None and self._head[0] == key:
            _, field, member = self._head
            if field in fields:
                raise self._fault(f"it holds {member.name!r} twice")
            fields.add(field)
            is_text = field in TEXTS
            num_bytes += member.size
            limit = MAX_TEXT_BYTES if is_text else MAX_EXAMPLE_BYTES
            if num_bytes > MAX_EXAMPLE_BYTES or member.size > limit:
                raise self._fault(f"with {member.name!r} of {member.size} bytes an example is over the limit of {limit}")
            if keep:
                files[field] = self._content(member) if is_text or sound else b""
            self._head = self._header()
        self.position += 1
        return Sample(self.shard.path, key, files)

    def _header(self) -> tuple[str, str, tarfile.TarInfo] | None:
        """Key, field and header of the next file, or None at the end."""
        while (member := self._next_member()) is not None:
            name = member.name
            if name.startswith("/") or ".." in name.split("/") or "\\" in name or not name.isprintable():
                raise self._fault(f"it holds the name {name!r}, which leads out of it")
            base = name.rpartition("/")[2]
            field = base.partition(".")[2]
            if not member.isreg() or base.startswith((".", "__")):  # folders, links, what systems leave
                continue
            if field.lower() in TEXTS or field.lower().rpartition(".")[2] in SOUNDS:
                return name.removesuffix(f".{field}").removeprefix("./"), field.lower(), member
        return None

    def _next_member(self) -> tarfile.TarInfo | None:
        try:
            member = self._tar.next()
            self._tar.members = []  # type: ignore[attr-defined]  # it would keep every header
            if member is None:
                self._check_end()
                return None
            if member.offset_data + (0 if member.issparse() else member.size) > self.num_bytes:
                raise self._fault(f"cut within {member.name!r}")
            if member.issparse():
                raise self._fault(f"{member.name!r} is a sparse file; write it without --sparse")
            return member
        except (tarfile.TarError, OSError, OverflowError, EOFError) as error:
            raise self._fault(f"damaged ({' '.join(str(error).split())})") from error

    def _check_end(self) -> None:
        """tarfile takes a header that it cannot read for the end."""
        self._file.seek(self._tar.offset)
        mark = self._file.read(512)
        while mark and not mark.strip(b"\0"):
            mark = self._file.read(_BLOCK)
        if mark or self._tar.offset >= self.num_bytes:
            raise self._fault(f"damaged or cut at byte {self._tar.offset}")

    def _content(self, member: tarfile.TarInfo) -> bytes:
        file = self._tar.extractfile(member)
        assert file is not None, "links were passed over"
        try:
            content = file.read()
        except (tarfile.TarError, OSError) as error:
            raise self._fault(f"damaged within {member.name!r} ({' '.join(str(error).split())})") from error
        if len(content) != member.size:
            raise self._fault(f"cut within {member.name!r}")
        return content

    def _started(self) -> tarfile.TarFile:
        try:
            return tarfile.open(fileobj=_Bounded(self._file), mode="r:")  # type: ignore[call-overload,no-any-return]
        except (tarfile.TarError, OSError) as error:
            raise self._fault(f"no plain tar file ({' '.join(str(error).split())}); a compressed one must be unpacked") from error

    def _hash(self) -> str:
        self._file.seek(0)
        digest = hashlib.sha256()
        while block := self._file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()

    def _fault(self, what: str) -> PalError:
        return PalError(f"shard {self.shard.path}: {what}")
