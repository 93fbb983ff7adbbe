"""Questions with choices, as MMAU and MMAR ask them.

Their scorers compare words, and a bare choice text is the only form that is always judged right; the question asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_audio.data.importers.base import Item, asked, text_of
from pal_audio.errors import PalError

INSTRUCTION = "Choose one answer and reply with its text alone:"


def choice_item(
    set_name: str,
    split: str,
    item: dict[str, Any],
    folder: Path,
    audio_key: str,
    task_key: str,
    meta_keys: Sequence[str],
    place: str,
) -> Item:
    """Make an item of a question with choices; one without `answer` stays open."""
    choices = item.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        raise PalError(f"{place}: 'choices' must be a list of at least two")
    choices = [str(choice) for choice in choices]
    answer = None if item.get("answer") is None else str(item["answer"])
    question = "\n".join([text_of(item, "question", place), INSTRUCTION, *(f"- {choice}" for choice in choices)])
    meta = {"choices": choices} | {key: _plain(item[key]) for key in meta_keys if key in item}
    clip = folder / text_of(item, audio_key, place)
    id = f"{set_name}-{text_of(item, 'id', place)}"
    fault = "the answer is none of the choices" if answer is not None and answer not in choices else ""
    return Item(split, asked(id, [clip], question, answer, str(item.get(task_key) or "choice"), meta), fault)


def _plain(value: Any) -> Any:
    """Take the one element out of a list of one: some rows write a category so."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value
