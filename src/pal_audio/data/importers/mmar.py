"""MMAR: questions with choices that need reasoning over speech, sound, music and their mixes. All of it is `test`.

Source: Ma et al., "MMAR: A Challenging Benchmark for Deep Reasoning in Speech, Audio, Music, and Their Mix" (2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item, found_tables
from pal_audio.data.importers.choices import choice_item
from pal_audio.data.importers.tables import json_items

_FILES = {"MMAR-meta.jsonl": "test", "MMAR-meta.json": "test"}
_META = ("category", "sub-category", "language", "source", "cue", "rubric")


def _items(root: Path) -> Iterator[Item]:
    path = next(iter(found_tables(root, _FILES, (".", "MMAR"), "MMAR").values()))
    for number, item in json_items(path):
        yield choice_item("mmar", "test", item, path.parent, "audio_path", "modality", _META, f"{path}, item {number}")


MMAR = Importer("mmar", "MMAR-meta.jsonl and audio/", "MMAR-meta.jsonl and mmar-audio.tar.gz (Hugging Face, BoJack/MMAR)", _items)
