"""AudioCaps: captions of ten-second stretches of YouTube videos.

Columns audiocap_id, youtube_id, start_time, caption, one caption a row. In val and test a clip has five rows: they become one
example with five references. The same row twice (same audiocap_id) counts once.
Source: Kim et al., "AudioCaps" (2019), tables train.csv, val.csv, test.csv of versions 1.0 and 2.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pal_audio.data.importers.base import (
    CAPTION_WORDINGS,
    Importer,
    Item,
    asked,
    captioned,
    clips_by_stem,
    found_tables,
    video_clip,
)
from pal_audio.data.importers.tables import csv_rows
from pal_audio.errors import PalError

_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
_SPLIT_OF_TABLE = {"train.csv": "train", "val.csv": "val", "test.csv": "test"}
_FOLDERS = (".", "dataset", "dataset2.0", "audiocaps")


def _items(root: Path) -> Iterator[Item]:
    tables = found_tables(root, _SPLIT_OF_TABLE, _FOLDERS, "AudioCaps")
    clips = clips_by_stem(root)
    for name, table in tables.items():
        split = _SPLIT_OF_TABLE[name]
        captions_of: dict[tuple[str, str], list[str]] = {}
        seen: set[str] = set()
        for number, row in csv_rows(table, _COLUMNS):
            key, video, start = row["audiocap_id"], row["youtube_id"], row["start_time"]
            if not key or not video:
                raise PalError(f"{table}, line {number}: audiocap_id {key!r}, youtube_id {video!r}")
            if key in seen:
                continue
            seen.add(key)
            if split != "train":
                captions_of.setdefault((video, start), []).append(row["caption"])
                continue
            clip = video_clip(clips, root, video, start)
            wording = CAPTION_WORDINGS[(len(seen) - 1) % len(CAPTION_WORDINGS)]
            meta = {"youtube_id": video, "start_time": start}
            yield Item(split, asked(f"audiocaps-{split}-{key}", [clip], wording, row["caption"], "caption", meta))
        for (video, start), captions in captions_of.items():
            clip = video_clip(clips, root, video, start)
            meta = {"youtube_id": video, "start_time": start}
            yield from captioned(split, f"audiocaps-{split}-{video}-{start}", clip, captions, "caption", meta)


AUDIOCAPS = Importer(
    "audiocaps",
    "train.csv, val.csv, test.csv and, anywhere below, clips named YOUTUBEID_START or YOUTUBEID",
    "dataset/*.csv (GitHub, cdjkim/audiocaps); the clips by its authors' request form",
    _items,
)
