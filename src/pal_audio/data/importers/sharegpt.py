"""Conversations as ShareGPT, LLaVA and LLaMA-Factory write them.

    {"conversations": [{"from": "human", "value": "<audio>What is it?"}, {"from": "gpt", "value": "A dog."}], "audios": ["a.wav"]}
    {"messages": [{"role": "user", "content": "<audio>What is it?"}, ...], "audios": ["a.wav"]}

Clips under `audios`, `audio` or `sound`, one or a list. Each `<audio>` or `<sound>` stands for the next clip; an item in which
markers and clips differ in number is left out. A file whose name holds val or test is that split, any other is train.
Source: LLaMA-Factory, data/README.md; the marker `<sound>` is that of NVIDIA's audio models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pal_audio.data.importers.base import Importer, Item, annotation_files, split_of, text_of
from pal_audio.data.importers.tables import json_items
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.errors import PalError

MARKER = re.compile(r"<(?:audio|sound)>\n?")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _items(root: Path) -> Iterator[Item]:
    folder = root if root.is_dir() else root.parent
    paths = [path for path in annotation_files(root, (".json", ".jsonl"), "ShareGPT") if path.name != "dataset_info.json"]
    for path in paths:
        for number, item in json_items(path):
            place = f"{path}, item {number}"
            clips = [folder / name for name in _clip_names(item, place)]
            turns = _turns(item, place)
            num_markers = sum(len(MARKER.findall(text)) for role, text in turns if role != "assistant")
            fault = "" if num_markers == len(clips) else f"{num_markers} markers for {len(clips)} clips"
            meta = {"id": item["id"]} if isinstance(item.get("id"), str | int) else {}
            messages = _messages(turns, clips) if not fault else [Message(role="user", content="")]
            example = Example(id=f"{path.stem}-{number}", messages=messages, task=str(item.get("task") or ""), meta=meta)
            yield Item(split_of(path.stem), example, fault)


def _clip_names(item: dict[str, Any], place: str) -> list[str]:
    keys = [key for key in ("audios", "audio", "sound") if item.get(key)]
    if len(keys) > 1:
        raise PalError(f"{place}: clips under {' and '.join(keys)}; keep one")
    value = item[keys[0]] if keys else []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PalError(f"{place}: {keys[0]!r} must be a path or a list of paths")
    return names


def _turns(item: dict[str, Any], place: str) -> list[tuple[str, str]]:
    """List role and text of each turn, in our words for roles."""
    key = "conversations" if "conversations" in item else "messages"
    said = item.get(key)
    if not isinstance(said, list) or not said or not all(isinstance(turn, dict) for turn in said):
        raise PalError(f"{place}: needs `conversations` or `messages`, a list of turns")
    turns = [("system", item["system"])] if isinstance(item.get("system"), str) and item["system"] else []
    for turn in said:
        who, text = ("from", "value") if "from" in turn else ("role", "content")
        role = text_of(turn, who, place)
        if role not in _ROLES:
            raise PalError(f"{place}: role {role[:40]!r} is not known; there are {', '.join(_ROLES)}")
        turns.append((_ROLES[role], text_of(turn, text, place)))
    return turns


def _messages(turns: list[tuple[str, str]], clips: list[Path]) -> list[Message]:
    left = iter(clips)
    messages = []
    for role, text in turns:
        if role == "assistant" or not MARKER.search(text):
            messages.append(Message.model_validate({"role": role, "content": text}))
            continue
        first, *others = MARKER.split(text)
        parts: list[AudioPart | TextPart] = [TextPart(text=first)] if first else []
        for other in others:
            parts.append(AudioPart(path=str(next(left))))
            parts += [TextPart(text=other)] if other else []
        messages.append(Message.model_validate({"role": role, "content": parts}))
    return messages


SHAREGPT = Importer(
    "sharegpt",
    "JSON or JSON Lines files with `conversations` (or `messages`) and `audios`, paths relative to ROOT; or one of them as ROOT",
    "your own, or a LLaMA-Factory data folder",
    _items,
    takes_file=True,
)
