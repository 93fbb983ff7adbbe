"""MMAU: questions with choices about sound, music and speech. `test-mini` has answers; `test` has none, a server scores it.

In some rows `category` is a list of one text: it is taken out. Data versions differ (v05.15.25 changed a quarter): state yours.
Source: Sakshi et al., "MMAU: A Massive Multi-Task Audio Understanding and Reasoning Benchmark" (2024).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item, found_tables
from pal_audio.data.importers.choices import choice_item
from pal_audio.data.importers.tables import json_items

_SPLIT_OF_FILE = {"mmau-test-mini.json": "test-mini", "mmau-test.json": "test"}
_META = ("dataset", "category", "sub-category", "difficulty")


def _items(root: Path) -> Iterator[Item]:
    for name, path in found_tables(root, _SPLIT_OF_FILE, (".", "MMAU"), "MMAU").items():
        for number, item in json_items(path):
            place = f"{path}, item {number}"
            yield choice_item("mmau", _SPLIT_OF_FILE[name], item, path.parent, "audio_id", "task", _META, place)


MMAU = Importer(
    "mmau",
    "mmau-test-mini.json with test-mini-audios/, mmau-test.json with test-audios/",
    "mmau-test-mini.json, mmau-test.json (GitHub, Sakshi113/MMAU) and the archives of audio that it links",
    _items,
)
