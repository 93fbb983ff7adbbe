"""VGGSound: one of 309 classes for ten seconds of a YouTube video. The table has no header: video, start, label, split.

A label may hold a comma ("railroad car, train wagon"). A header that a copy of the table may have is passed over.
Source: Chen et al., "VGGSound: A Large-scale Audio-Visual Dataset" (2020).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import Importer, Item, asked, clips_by_stem, find_layout, video_clip
from pal_audio.data.importers.recordings import SOUND_WORDINGS
from pal_audio.data.importers.tables import csv_rows
from pal_audio.errors import PalError

_COLUMNS = ("video", "start", "label", "split")


def _items(root: Path) -> Iterator[Item]:
    table = find_layout(root, (".", "data", "VGGSound"), "vggsound.csv", "VGGSound")
    clips = clips_by_stem(root)
    for number, row in csv_rows(table, _COLUMNS, headerless=True):
        video, start, label, split = (row[column].strip() for column in _COLUMNS)
        if number == 1 and not start.isdecimal() and split not in ("train", "test"):
            continue
        if not video or not start.isdecimal() or not label or split not in ("train", "test"):
            raise PalError(f"{table}, line {number}: video {video!r}, start {start!r}, label {label!r}, split {split!r}")
        wording = SOUND_WORDINGS[number % len(SOUND_WORDINGS)] if split == "train" else SOUND_WORDINGS[0]
        meta = {"youtube_id": video, "start_time": int(start)}
        clip = video_clip(clips, root, video, start)
        yield Item(split, asked(f"vggsound-{video}-{start}", [clip], wording, label, "classify", meta))


VGGSOUND = Importer(
    "vggsound",
    "vggsound.csv and, anywhere below, clips named YOUTUBEID_START (as such or with six digits) or YOUTUBEID",
    "vggsound.csv and vggsound_*.tar.gz (Hugging Face, Loie/VGGSound)",
    _items,
)
