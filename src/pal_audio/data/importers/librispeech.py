"""LibriSpeech: read English. train-* train, dev-* val, test-* test; `meta["subset"]` tells clean from other.

Source: Panayotov et al., "LibriSpeech" (2015). Transcripts come in capitals; they are lower-cased here (our choice), as
word error rates do on both sides anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item, asked
from pal_audio.data.importers.tables import MAX_CHARS
from pal_audio.errors import PalError

_SPLIT_OF_SUBSET = {
    **dict.fromkeys(("train-clean-100", "train-clean-360", "train-other-500"), "train"),
    **dict.fromkeys(("dev-clean", "dev-other"), "val"),
    **dict.fromkeys(("test-clean", "test-other"), "test"),
}
_WORDINGS = ("Transcribe the speech.", "What is said?", "Write down what the speaker says.")


def _items(root: Path) -> Iterator[Item]:
    folders = [base / name for base in (root, root / "LibriSpeech") for name in _SPLIT_OF_SUBSET if (base / name).is_dir()]
    tables = [(folder.name, table) for folder in folders for table in sorted(folder.glob("*/*/*.trans.txt"))]
    if not tables:
        raise PalError(
            f"no LibriSpeech layout under {root}; looked for [LibriSpeech/]SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt "
            f"with SUBSET one of {', '.join(_SPLIT_OF_SUBSET)}"
        )
    number = 0
    for subset, table in tables:
        split = _SPLIT_OF_SUBSET[subset]
        for line_number, line in _lines(table):
            name, _, text = line.strip().partition(" ")
            speaker, chapter = table.parts[-3], table.parts[-2]
            if not name.startswith(f"{speaker}-{chapter}-") or "/" in name:
                raise PalError(f"{table}, line {line_number}: {name[:80]!r} is not an utterance of {speaker}-{chapter}")
            wording = _WORDINGS[number % len(_WORDINGS)] if split == "train" else _WORDINGS[0]
            meta = {"subset": subset, "speaker": speaker}
            clip = table.parent / f"{name}.flac"
            yield Item(split, asked(f"librispeech-{subset}-{name}", [clip], wording, text.lower(), "transcribe", meta))
            number += 1


def _lines(table: Path) -> Iterator[tuple[int, str]]:
    try:
        if table.stat().st_size > MAX_CHARS:  # the official ones stay far below
            raise PalError(f"{table}: more than {MAX_CHARS} bytes for one chapter's transcripts")
        lines = table.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PalError(f"{table}: cannot be read: {error}") from error
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


LIBRISPEECH = Importer(
    "librispeech",
    "LibriSpeech/SUBSET/SPEAKER/CHAPTER/ with .trans.txt and .flac",
    "train-clean-100.tar.gz, dev-clean.tar.gz, test-clean.tar.gz, ... (OpenSLR, set 12)",
    _items,
)
