"""Encoded sound from a path, bytes, a stream, stdin or an address: an open seekable file within the limit of bytes."""

import contextlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pal_audio.audio import https
from pal_audio.audio.request import Request, one_line


def name_of(source: Any) -> str:
    """What errors call a source: one line without credentials."""
    if isinstance(source, Mapping):
        source = source.get("path") or "<audio of a dict>"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        if is_url(text):  # without credentials and signed queries, which must not reach a log
            text = re.sub(r"//[^/?#]*@", "//", text.split("?")[0].split("#")[0])
        return "<stdin>" if text == "-" else one_line(text)
    name = getattr(source, "name", None)
    return one_line(name) if isinstance(name, str) else f"<{type(source).__name__}>"


def is_url(source: Any) -> bool:
    return isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", source) is not None


@contextlib.contextmanager
def open_source(source: Any, request: Request, allow_url: bool) -> Iterator[BinaryIO]:
    """The encoded source as a seekable binary file, not empty and not above the limit of bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file: BinaryIO = io.BytesIO(source)
    elif is_url(source):
        if not allow_url:
            request.fail("a URL is not fetched unless it is allowed", "give allow_url=True, or download it and give the path")
        try:
            file = io.BytesIO(https.fetch(source, request.max_bytes))
        except https.FetchError as error:
            request.fail(f"cannot be fetched ({error})", "check the URL, or download it and give the path")
    elif isinstance(source, str) and source == "-":
        stdin = getattr(sys.stdin, "buffer", None)
        if stdin is None or sys.stdin.isatty():
            request.fail("standard input is not piped", "pipe an audio file into the command, or give a path")
        file = _read_stream(stdin, request)
    elif isinstance(source, (str, os.PathLike)):
        file = _open_path(source, request)
    elif hasattr(source, "read"):
        file = _read_stream(source, request)
    else:
        request.fail(f"{type(source).__name__} is not a source of audio", "give a path, bytes, a binary file or (array, rate)")
    with file:
        num_bytes = file.seek(0, os.SEEK_END)
        if num_bytes == 0:
            request.fail("empty (0 bytes)", "check how it was written or copied")
        if num_bytes > request.max_bytes:
            request.fail(f"more bytes than max_bytes={request.max_bytes}", "cut or compress it, or raise the limit")
        yield file


def _open_path(path: str | os.PathLike[str], request: Request) -> BinaryIO:
    try:
        # by descriptor: from a name that ends in .raw, soundfile would take the format
        file = open(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), "rb")  # noqa: SIM115
    except FileNotFoundError:
        request.fail("no such file", "check the path")
    except IsADirectoryError:
        request.fail("a directory, not a file", "give the path of one audio file")
    except (OSError, ValueError) as error:  # ValueError: a null character
        request.fail(f"cannot be opened ({getattr(error, 'strerror', None) or error})", "check the path and its permissions")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    with file:  # a pipe or a device
        return _read_stream(file, request)


def _read_stream(stream: Any, request: Request) -> BinaryIO:
    content = io.BytesIO()
    try:
        while content.tell() <= request.max_bytes and (chunk := stream.read(2**16)):
            content.write(chunk)
    except (OSError, ValueError, TypeError) as error:  # ValueError: a closed file; TypeError: text
        request.fail(f"cannot be read ({error})", "give an open file in binary mode ('rb')")
    return content
