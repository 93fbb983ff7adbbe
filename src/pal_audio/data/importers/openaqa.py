"""OpenAQA, LTU's questions and answers: a JSON list with instruction, input, audio_id, dataset, task, output.

Audio comes from the sets that it is made of, and `audio_id` is a path on its authors' machine: the longest end of it that exists
under ROOT is taken. "empty" means an item without audio. LTU's own prompt ("### Instruction: ... ### Response:", audio before all
text) is not written here: the language model's chat template takes its place, and the audio still comes first.
Source: Gong et al., "Listen, Think, and Understand" (2023); openaqa_5.6M.json, all_closed_qa.json, combine_cla.json and the files
of its evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pal_audio.data.importers.base import Importer, Item, annotation_files, asked, split_of, text_of
from pal_audio.data.importers.tables import json_items

_NO_AUDIO = "empty"


def _items(root: Path) -> Iterator[Item]:
    folder = root if root.is_dir() else root.parent
    for path in annotation_files(root, (".json", ".jsonl"), "OpenAQA"):
        split = split_of(path.stem)
        for number, item in json_items(path):
            place = f"{path}, item {number}"
            audio_id = text_of(item, "audio_id", place)
            question = text_of(item, "instruction", place)
            more = item.get("input") or ""
            question = f"{question}\n{more}" if more else question
            audio = [] if audio_id == _NO_AUDIO else [_below(folder, audio_id)]
            meta: dict[str, Any] = {key: item[key] for key in ("dataset", "audio_id") if key in item}
            task = str(item.get("task") or "")
            yield Item(split, asked(f"{path.stem}-{number}", audio, question, text_of(item, "output", place), task, meta))


def _below(folder: Path, audio_id: str) -> Path:
    """Find the longest end of a foreign path that exists in a folder, else say where it would be whole."""
    parts = [part for part in PurePosixPath(audio_id).parts if part not in ("/", "..")]
    if "\0" not in audio_id and len(parts) <= 64:
        for start in range(len(parts)):
            candidate = folder.joinpath(*parts[start:])
            if len(str(candidate)) < 4096 and all(len(part.encode()) < 256 for part in parts[start:]) and candidate.is_file():
                return candidate
    return folder.joinpath(*parts)


OPENAQA = Importer(
    "openaqa",
    "LTU's JSON files (or one of them as ROOT), and below ROOT the audio, each file where some end of its path leads",
    "openaqa_5.6M.json, all_closed_qa.json, combine_cla.json (GitHub, YuanGongND/ltu); audio of AudioSet, FSD50K, ...",
    _items,
    takes_file=True,
)
