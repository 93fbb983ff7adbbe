"""Tables and lists of strangers, read a piece at a time: no line, cell or object may grow without bound.

Source: our choice, the limits too.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from pal_audio.errors import PalError

MAX_CHARS = 2**20  # of a line of CSV, or of one object of JSON
_BLANK = " \t\r\n"


def csv_rows(path: Path, columns: Sequence[str], headerless: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells of a CSV table.

    Args:
        path: UTF-8, with commas.
        columns: Those that it must have; others come along.
        headerless: The first line is a row already, and `columns` are its cells in order.

    Raises:
        PalError: The table cannot be read, lacks a column, or has a line that is no CSV. A cell that is not there is "".
    """
    with _opened(path) as file:
        rows = csv.DictReader(_lines(file, path), fieldnames=columns if headerless else None, restkey="", restval="")
        try:
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise PalError(f"{path}: the table lacks the column(s) {', '.join(sorted(missing))}")
            for row in rows:
                row.pop("", None)  # cells beyond the header
                yield rows.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise PalError(f"{path}, near line {rows.line_num + 1}: {error}") from error


def json_items(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number (from 1) and object of a JSON list of objects, or of JSON Lines.

    Raises:
        PalError: The file cannot be read or is neither; the message names the item.
    """
    with _opened(path) as file:
        number = 0
        try:
            for number, item in enumerate(_decoded(file), start=1):
                if not isinstance(item, dict):
                    raise PalError(f"{path}, item {number}: {type(item).__name__} where an object should be")
                yield number, item
        except RecursionError as error:
            raise PalError(f"{path}, item {number + 1}: nested too deeply") from error
        except PalError:
            raise
        except ValueError as error:  # JSON and UTF-8
            raise PalError(f"{path}, item {number + 1}: neither a JSON list nor JSON Lines ({error})") from error


def _opened(path: Path) -> TextIO:
    try:
        return open(path, encoding="utf-8-sig", newline="")
    except OSError as error:
        raise PalError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(MAX_CHARS + 1):
        if len(line) > MAX_CHARS:
            raise PalError(f"{path}: a line is longer than {MAX_CHARS} characters; is it a table at all?")
        yield line


def _decoded(file: TextIO) -> Iterator[Any]:
    """Decode value after value out of a buffer that holds little more than one."""
    decoder = json.JSONDecoder()
    buffer = file.read(MAX_CHARS).lstrip(_BLANK)
    is_list = buffer.startswith("[")
    at = int(is_list)
    ended, first = False, True
    while True:
        at = _skip(buffer, at)
        if len(buffer) - at < MAX_CHARS and not ended:  # so that a whole value of the greatest size fits
            more = file.read(MAX_CHARS)
            ended, buffer, at = not more, buffer[at:] + more, 0
            at = _skip(buffer, at)
        if is_list and buffer.startswith("]", at):
            if buffer[at + 1 :].strip() or file.read(1).strip():
                raise ValueError("text after the end of the list")
            return
        if at == len(buffer) and not is_list:
            return
        if is_list and not first:
            if not buffer.startswith(",", at):
                raise ValueError("a comma or the end of the list is missing")
            at = _skip(buffer, at + 1)
        if not buffer.startswith("{", at):
            raise ValueError("no object where one should begin")
        item, end = decoder.raw_decode(buffer, at)
        if end - at > MAX_CHARS:
            raise ValueError(f"longer than {MAX_CHARS} characters")
        yield item
        at, first = end, False


def _skip(buffer: str, at: int) -> int:
    while at < len(buffer) and buffer[at] in _BLANK:
        at += 1
    return at
