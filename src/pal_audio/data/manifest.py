"""Manifests: JSON Lines, one example a line, in the ecosystem's chat form.

    {"id": "a-1", "task": "classify", "meta": {}, "messages": [
      {"role": "user", "content": [{"type": "audio", "path": "a.flac", "end_s": 10}, {"type": "text", "text": "..."}]},
      {"role": "assistant", "content": "a bell"}]}

Paths are relative to the manifest. In memory (after `read_manifest`) they are absolute. A manifest may come from a stranger, so a
path that leaves the manifest's folder, by `..`, by a link or by being absolute, is refused unless it ends under a root that the
caller names.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, PrivateAttr, Tag, ValidationError, model_validator

from pal_audio.config import StrictConfig, one_line
from pal_audio.errors import PalError
from pal_audio.many_objects import many_objects

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AudioPart(StrictConfig):
    """A clip, or with `start_s` and `end_s` a stretch of it."""

    type: Literal["audio"] = "audio"
    path: str = Field(min_length=1)
    start_s: Seconds | None = None
    end_s: Seconds | None = None
    _content: bytes | None = PrivateAttr(default=None)

    @property
    def content(self) -> bytes | None:
        """The encoded sound where it came with the example, out of a shard; then `path` only names it. Never written."""
        return self._content

    def attach(self, content: bytes) -> None:
        """Carry the encoded sound; see `content`."""
        self._content = content

    @model_validator(mode="after")
    def _ordered(self) -> AudioPart:
        if self.end_s is not None and self.end_s <= (self.start_s or 0):
            raise ValueError(f"end_s {self.end_s} must lie after start_s {self.start_s or 0}")
        return self


class TextPart(StrictConfig):
    """A stretch of text."""

    type: Literal["text"] = "text"
    text: str


class Message(StrictConfig):
    """One turn. `content` is plain text or a list of parts in reading order."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("plain")]
        | Annotated[list[Annotated[AudioPart | TextPart, Field(discriminator="type")]], Tag("parts")],
        Discriminator(lambda content: "plain" if isinstance(content, str) else "parts"),  # one error, of the form that was meant
    ]

    @model_validator(mode="after")
    def _sound_comes_from_the_user(self) -> Message:
        if self.role == "assistant" and any(isinstance(part, AudioPart) for part in self._written):
            raise ValueError("an assistant message holds audio; only text can be answered")
        return self

    @property
    def parts(self) -> list[AudioPart | TextPart]:
        """The content as a list of parts."""
        return [TextPart(text=self.content)] if isinstance(self.content, str) else list(self.content)

    @property
    def text(self) -> str:
        """The text parts, joined without a separator."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def _written(self) -> list[AudioPart | TextPart]:
        """Parts that are written as such: plain text is none. Nothing is made, so that very many messages cost little."""
        return [] if isinstance(self.content, str) else self.content


class Example(StrictConfig):
    """One line of a manifest."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    id: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    task: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def answer(self) -> str | None:
        """Text of the last message where the assistant wrote it, else None (an open question)."""
        return self.messages[-1].text if self.messages[-1].role == "assistant" else None

    @property
    def prompt(self) -> list[Message]:
        """The messages without the answer."""
        return self.messages if self.answer is None else self.messages[:-1]

    @property
    def question(self) -> str:
        """All text of the prompt: what a model that hears nothing would know."""
        return "\n".join(message.text for message in self.prompt)

    @property
    def audio(self) -> list[AudioPart]:
        """The clips in reading order."""
        return [part for message in self.messages for part in message._written if isinstance(part, AudioPart)]


def read_manifest(path: str | os.PathLike[str], roots: Sequence[str | os.PathLike[str]] = ()) -> list[Example]:
    """Read a manifest; audio paths become absolute.

    Args:
        path: The JSON Lines file, UTF-8. Blank lines are passed over.
        roots: Folders outside the manifest's own that audio may lie in.

    Raises:
        PalError: The file cannot be read, holds no example, or a line is wrong; the message names file and line. Whether the
            audio files exist is not looked at: see `check.check_manifest`.
    """
    examples = []
    with many_objects():
        for _, item in _items(Path(path), roots):
            if isinstance(item, PalError):
                raise item
            examples.append(item)
    if not examples:
        raise PalError(f"{path}: the manifest holds no example")
    return examples


def write_manifest(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Write a manifest whole or not at all (temporary name, sync, rename).

    Args:
        path: Where to. An existing file is replaced.
        examples: Absolute audio paths are rewritten relative to the manifest's folder, relative ones are kept.
    """
    target = Path(path)
    folder = target.parent.resolve()
    write_text(target, "".join(manifest_line(example, folder) for example in examples))


def manifest_line(example: Example, folder: Path) -> str:
    """One line of a manifest that lies in `folder` (resolved), its end included; absolute audio paths become relative."""
    if any(os.path.isabs(part.path) for part in example.audio):
        example = example.model_copy(deep=True)
        for part in example.audio:
            if os.path.isabs(part.path):
                part.path = Path(os.path.relpath(Path(part.path).resolve(), folder)).as_posix()
    return example.model_dump_json(exclude_none=True) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _items(path: Path, roots: Sequence[str | os.PathLike[str]]) -> Iterator[tuple[int, Example | PalError]]:
    """Yield line number and example, or what is wrong with the line."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PalError(f"{path}: cannot read the manifest: {error.strerror}") from error
    folder = path.parent.resolve()
    allowed = [folder, *(Path(root).resolve() for root in roots)]
    places = _Places(folder, allowed)
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            example = Example.model_validate(json.loads(line.decode("utf-8")))
            for part in example.audio:
                part.path = places.absolute(part.path)
            if example.id in line_of_id:
                raise PalError(f"id {example.id!r} is already that of line {line_of_id[example.id]}")
            line_of_id[example.id] = number
            yield number, example
        except ValidationError as error:
            yield number, PalError(f"{path}, line {number}: {one_line(error)}")
        except RecursionError:
            yield number, PalError(f"{path}, line {number}: nested too deeply")
        except ValueError as error:  # JSON, UTF-8 and our own PalError
            yield number, PalError(f"{path}, line {number}: {error}")


class _Places:
    """Audio paths of one manifest, as `resolved_audio` gives them; a folder in which many files lie is looked at once."""

    def __init__(self, folder: Path, allowed: Sequence[Path]) -> None:
        self._folder = folder
        self._allowed = allowed
        self._resolved: dict[str, str | None] = {}

    def absolute(self, name: str) -> str:
        head, tail = os.path.split(name)
        if head not in self._resolved:
            self._resolved[head] = self._known(head)
        folder = self._resolved[head]
        if folder is not None and tail not in ("", ".", ".."):
            path = os.path.join(folder, tail)
            try:
                if not stat.S_ISLNK(os.lstat(path).st_mode):
                    return path
            except OSError:
                pass  # what is wrong is told below
        return str(resolved_audio(name, self._folder, self._allowed))

    def _known(self, head: str) -> str | None:
        """A folder that may hold audio, resolved; None of one that may not, or cannot be followed."""
        try:
            return str(resolved_audio(head, self._folder, self._allowed))
        except PalError:
            return None


def resolved_audio(name: str, folder: Path, allowed: Sequence[Path]) -> Path:
    """Make an audio path of a manifest in `folder` absolute.

    Raises:
        PalError: It lies under none of the allowed folders, or cannot be followed.
    """
    try:
        resolved = (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise PalError(f"audio path {name!r} cannot be followed: {error}") from error
    if not any(resolved.is_relative_to(root) for root in allowed):
        raise PalError(f"audio path {name!r} leaves the manifest's folder; name its folder as an allowed root if you trust it")
    return resolved
