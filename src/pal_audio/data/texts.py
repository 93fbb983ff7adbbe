"""Plain text to learn: a file of documents, without roles and without sound.

    data.train: [{text: book.txt, documents: file}, {text: lines.txt}, {text: corpus.jsonl}]

`.jsonl` holds an object a line whose "text" is a document. Any other file is UTF-8 text: a document a line, or one document.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pal_audio.data.manifest import Example, Message
from pal_audio.errors import PalError

MAX_DOCUMENT_BYTES = 2**28

Documents = Literal["lines", "file"]


class Document(Example):
    """A text as an example: its one message is nobody's answer, and no chat template is put around it."""


def read_documents(path: Path, documents: Documents = "lines") -> list[Document]:
    """Documents of a file; empty ones are passed over.

    Args:
        path: UTF-8.
        documents: what one is in a file that is not .jsonl.

    Raises:
        PalError: the file cannot be read, holds no document, or a line is wrong or over 256 MiB; file and line are named.
    """
    found = [
        Document(id=f"{path.name}:{number}", messages=[Message(role="user", content=text)], task="text")
        for number, text in _texts(path, documents)
        if text.strip()
    ]
    if not found:
        raise PalError(f"{path}: no document in it")
    return found


def _texts(path: Path, documents: Documents) -> Iterator[tuple[int, str]]:
    try:
        if documents == "file" and path.suffix != ".jsonl":
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise PalError(f"{path}: over the limit of {MAX_DOCUMENT_BYTES} bytes for one document; use documents: lines")
            yield 1, _decoded(path.read_bytes(), path, 1)
            return
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise PalError(f"{path}, line {number}: over the limit of {MAX_DOCUMENT_BYTES} bytes")
                text = _decoded(line, path, number).rstrip("\r\n")
                yield number, _text_of(text, path, number) if path.suffix == ".jsonl" and text.strip() else text
    except OSError as error:
        raise PalError(f"{path}: cannot be read: {error.strerror}") from error


def _decoded(raw: bytes, path: Path, number: int) -> str:
    try:
        return (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise PalError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from None


def _text_of(line: str, path: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise PalError(f'{path}, line {number}: needs an object with "text"')
    return text
