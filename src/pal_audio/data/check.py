"""Everything that is wrong with a manifest, each fault with its line: its form, and, by decoding it, its sound.

Source: our choice.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pal_audio.audio import MAX_SECONDS, AudioError, SilentAudioWarning, load_audio
from pal_audio.config import faults
from pal_audio.data.manifest import AudioPart, Example, resolved_audio
from pal_audio.errors import PalError

MAX_LINE_BYTES = 2**24
_RATE_HZ = 16_000  # any rate does: the sound is only decoded
_BLOCK = 2**20
# A clip's place is its audio part; these are what other formats write for it.
_MARKER = re.compile(r"<(?:audio|sound|\|audio\|)>", re.IGNORECASE)


class Problem(NamedTuple):
    """A fault of a line (0: of the whole file).

    `kind` is one of json, form, duplicate, path, missing, audio, silent, truncated, roles, markers, empty.
    """

    line: int
    kind: str
    message: str


@dataclass
class Report:
    """What a check found. `first` is the first faultless example with an answer; its audio paths are absolute."""

    num_examples: int = 0
    num_open: int = 0  # examples without an answer
    num_clips: int = 0  # different ones that decode
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    first: Example | None = None


class _Heard(NamedTuple):
    seconds: float
    faults: list[tuple[str, str]]  # kind and message


def check_manifest(path: str | os.PathLike[str], roots: Sequence[str | os.PathLike[str]] = ()) -> list[str]:
    """List everything wrong with a manifest, missing audio files included, without decoding; each entry names file and line."""
    return [shown(path, problem) for problem in inspect_manifest(path, roots, listen=False).problems]


def shown(path: str | os.PathLike[str], problem: Problem) -> str:
    """A problem as a line of text."""
    return f"{path}, line {problem.line}: {problem.message}" if problem.line else f"{path}: {problem.message}"


def inspect_manifest(
    path: str | os.PathLike[str],
    roots: Sequence[str | os.PathLike[str]] = (),
    listen: bool = True,
    max_seconds: float = MAX_SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a manifest; nothing stops at the first fault.

    Args:
        path: The manifest.
        roots: Folders outside of the manifest's own that audio may lie in.
        listen: Decode every clip (each once).
        max_seconds: Longest clip.
        progress: Called with lines done and lines in all.

    Raises:
        PalError: The manifest cannot be read.
    """
    manifest = Path(path)
    folder = manifest.parent.resolve()
    allowed = [folder, *(Path(root).resolve() for root in roots)]
    report, line_of_id = Report(), dict[str, int]()
    heard: dict[tuple[str, float | None, float | None], _Heard] = {}
    try:
        num_lines = _num_lines(manifest)
        for number, raw in _lines(manifest):
            found, example = _form_faults(raw, number, line_of_id)
            if example is not None:
                report.num_examples += 1
                report.num_open += example.answer is None
                found += _conversation_faults(example)
                for part in example.audio:
                    found += _audio_faults(part, folder, allowed, heard, max_seconds if listen else None)
                if not found and report.first is None and example.answer is not None:
                    report.first = example
            report.problems += [Problem(number, kind, message) for kind, message in dict.fromkeys(found)]
            if progress is not None:
                progress(number, num_lines)
    except OSError as error:
        raise PalError(f"{path}: cannot read the manifest: {error.strerror}") from error
    if not report.num_examples and not report.problems:
        report.problems.append(Problem(0, "empty", "the manifest holds no example"))
    decoded = [clip for clip in heard.values() if clip.seconds]
    report.num_clips, report.seconds = len(decoded), sum(clip.seconds for clip in decoded)
    return report


def _num_lines(path: Path) -> int:
    num, last = 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            num, last = num + block.count(b"\n"), block[-1:]
    return num + (last != b"\n")


def _lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and bytes of every line that is not blank; None for one that is too long."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while not line.endswith(b"\n") and (line := file.readline(_BLOCK)):
                    pass
                yield number, None
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def _form_faults(raw: bytes | None, number: int, line_of_id: dict[str, int]) -> tuple[list[tuple[str, str]], Example | None]:
    """Find what is wrong with a line as such, and give the example where it is one."""
    if raw is None:
        return [("json", f"longer than {MAX_LINE_BYTES} bytes")], None
    try:
        value: Any = json.loads(raw.decode("utf-8"))
    except RecursionError:
        return [("json", "nested too deeply")], None
    except ValueError as error:
        return [("json", str(error))], None
    found: list[tuple[str, str]] = []
    id = value.get("id") if isinstance(value, dict) else None
    if isinstance(id, str | int | float) and str(id):
        if str(id) in line_of_id:
            found.append(("duplicate", f"id {str(id)!r} is already that of line {line_of_id[str(id)]}"))
        line_of_id.setdefault(str(id), number)
    try:
        return found, Example.model_validate(value)
    except ValidationError as error:
        return found + [("form", fault) for fault in faults(error)], None


def _conversation_faults(example: Example) -> list[tuple[str, str]]:
    """Find wrong turns: roles in order, answers with text, and a place for every clip."""
    found: list[tuple[str, str]] = []
    roles = [message.role for message in example.messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken[:1] != ["user"] or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        found.append(("roles", f"roles {', '.join(roles)}; one system message or none, then user and assistant in turn"))
    for number, message in enumerate(example.messages):
        if message.role == "assistant" and not message.text.strip():
            found.append(("empty", f"messages.{number}: the answer is empty"))
        elif message.role == "user" and not message.text.strip() and not any(isinstance(p, AudioPart) for p in message.parts):
            found.append(("empty", f"messages.{number}: the question is empty"))
    markers = [marker for message in example.messages for marker in _MARKER.findall(message.text)]
    if markers:
        names, num_clips = ", ".join(sorted(set(markers))), len(example.audio)
        mend = "a clip's place is its audio part, so the text must not hold a marker"
        found.append(("markers", f"{len(markers)} of {names} in the text for {num_clips} clips; {mend}"))
    return found


def _audio_faults(
    part: AudioPart,
    folder: Path,
    allowed: Sequence[Path],
    heard: dict[tuple[str, float | None, float | None], _Heard],
    max_seconds: float | None,
) -> list[tuple[str, str]]:
    """Find what is wrong with a clip, whose path becomes absolute; without `max_seconds` it is not decoded."""
    try:
        part.path = str(resolved_audio(part.path, folder, allowed))
        is_file = Path(part.path).is_file()
    except (OSError, ValueError) as error:  # our own, a null character, a name too long
        return [("path", str(error))]
    if not is_file:
        return [("missing", f"no such audio file {part.path}")]
    if max_seconds is None:
        return []
    key = (part.path, part.start_s, part.end_s)
    if key not in heard:
        heard[key] = _heard(part, max_seconds)
    return heard[key].faults


def _heard(part: AudioPart, max_seconds: float) -> _Heard:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            wav_S = load_audio(part.path, _RATE_HZ, start_s=part.start_s, end_s=part.end_s, max_seconds=max_seconds)
        except AudioError as error:
            return _Heard(0.0, [("audio", str(error))])
    found = [("silent" if item.category is SilentAudioWarning else "truncated", str(item.message)) for item in caught]
    return _Heard(len(wav_S) / _RATE_HZ, found)
