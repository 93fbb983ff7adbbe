"""What importers share: what one is, what it yields, how layouts and clips are found, how an example is made.

An importer reads a public set as its authors pack it and yields items. Whether audio is there, and where manifests go, is the
business of `writing.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.errors import PalError

SPLITS = ("train", "val", "test", "test-mini")  # manifests that an importer may write
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".mkv", ".aac")
CAPTION_WORDINGS = ("Describe the sound.", "What do you hear?", "Write a caption for this recording.", "What happens here?")

_WORDS_OF_SPLITS = {
    "test": {"test", "eval", "evaluation"},
    "val": {"val", "valid", "validation", "dev"},
}


@dataclass(frozen=True)
class Item:
    """One example, its audio by a path below the set's folder; `fault` says why it must be left out."""

    split: str
    example: Example
    fault: str = ""


@dataclass(frozen=True)
class Importer:
    """A set that can be imported.

    Attributes:
        name: as in `pal data import NAME`.
        needs: the layout under ROOT.
        archives: what to get it from.
        read: items of the set in ROOT; raises PalError where the layout is not there.
        takes_file: ROOT may also be one file; audio is then sought beside it.
    """

    name: str
    needs: str
    archives: str
    read: Callable[[Path], Iterator[Item]]
    takes_file: bool = False


def asked(
    id: str, audio: Sequence[AudioPart | Path], question: str, answer: str | None, task: str, meta: dict[str, Any] | None = None
) -> Example:
    """Make an example of one turn: audio, question, and the answer where there is one."""
    parts = [AudioPart(path=str(part)) if isinstance(part, Path) else part for part in audio]
    messages = [Message(role="user", content=[*parts, TextPart(text=question)])]
    if answer is not None:
        messages.append(Message(role="assistant", content=answer))
    return Example(id=id, messages=messages, task=task, meta=meta or {})


def captioned(split: str, id: str, clip: Path, captions: Sequence[str], task: str, meta: dict[str, Any]) -> Iterator[Item]:
    """Yield one item a caption for training, else one a clip, with all captions as `meta["references"]`.

    Wordings take turns in training; elsewhere all clips are asked the same.
    """
    if split != "train":
        meta = {**meta, "references": list(captions)}
        yield Item(split, asked(id, [clip], CAPTION_WORDINGS[0], captions[0], task, meta))
        return
    for number, caption in enumerate(captions):
        wording = CAPTION_WORDINGS[number % len(CAPTION_WORDINGS)]
        yield Item(split, asked(f"{id}-{number + 1}", [clip], wording, caption, task, meta))


def find_layout(root: Path, folders: Sequence[str], inside: str, set_name: str) -> Path:
    """Find `inside` in the first of the folders under ROOT that has it.

    Raises:
        PalError: None has; all places are named.
    """
    for folder in folders:
        if (root / folder / inside).exists():
            return root / folder / inside
    looked = ", ".join(str(Path(folder) / inside) for folder in folders)
    raise PalError(f"no {set_name} layout under {root}; looked for {looked}")


def found_tables(root: Path, names: dict[str, str], folders: Sequence[str], set_name: str) -> dict[str, Path]:
    """Find those of a set's tables (name to split) that are there, by name.

    Raises:
        PalError: None is there.
    """
    found = {name: root / folder / name for folder in reversed(folders) for name in names if (root / folder / name).is_file()}
    if not found:
        looked = ", ".join(str(Path(folder) / name) for folder in folders for name in names)
        raise PalError(f"no {set_name} layout under {root}; looked for {looked}")
    return {name: found[name] for name in names if name in found}


def annotation_files(root: Path, suffixes: Sequence[str], set_name: str) -> list[Path]:
    """List a folder's own files of a kind (or the one file that ROOT is), in order of name.

    Raises:
        PalError: There is none.
    """
    if root.is_file():
        return [root]
    found = sorted(path for path in root.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise PalError(f"no {set_name} layout under {root}; looked for {', '.join('*' + suffix for suffix in suffixes)}")
    return found


def clips_by_stem(root: Path) -> dict[str, Path]:
    """Every sound or video file below a folder by its name without the ending; of two the first in order of path."""
    found: dict[str, Path] = {}
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                found.setdefault(stem, Path(folder, name))
    return found


def video_clip(clips: dict[str, Path], root: Path, youtube_id: str, start: str) -> Path:
    """Find a clip of a video by the names that downloaders give: ID_START (plain, with decimals, six digits), ID, or Y + ID."""
    names = [f"{youtube_id}_{start}"]
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", start):
        whole = int(float(start))
        names += [f"{youtube_id}_{whole}", f"{youtube_id}_{whole:06d}", f"{youtube_id}_{float(start)}"]
    names += [youtube_id, f"Y{youtube_id}"]
    return next((clips[name] for name in names if name in clips), root / f"{names[0]}.wav")


def split_of(name: str) -> str:
    """Read a split out of the words of a file's name or a cell; without such a word it is `train`."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, known in _WORDS_OF_SPLITS.items() if words & known), "train")


def text_of(item: dict[str, Any], key: str, place: str) -> str:
    """Take a text out of an object.

    Raises:
        PalError: It is not there or no text.
    """
    if not isinstance(item.get(key), str):
        raise PalError(f"{place}: {key!r} must be text, not {_shown(item.get(key))}")
    return item[key]


def _shown(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
