"""Answers in the form that a benchmark's own script or server reads: OUT/mmau.json, OUT/mmar.json.

Every item is in the file, answered or not: the official scripts skip an item without the key and leave it out of the denominator.
What is written is the bare text of the choice that was named, or nothing, which those scripts call wrong.
MMAU's script reads `model_output`, its README says `model_prediction`; both are written. MMAR's reads `answer_prediction`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pal_audio.data.manifest import write_text
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.parsers import bare_choice
from pal_audio.evaluation.scoring import Evaluation
from pal_audio.evaluation.store import Answer

_KEYS = {"mmau": ("model_output", "model_prediction"), "mmar": ("answer_prediction",)}


def write_official(evaluation: Evaluation) -> list[Path]:
    """Write the files of those benchmarks that were asked by `generate`."""
    written = []
    for task in evaluation.info.tasks:
        if task.name in _KEYS and "generate" in task.methods:
            pairs = zip(evaluation.items[task.name], evaluation.answers[task.name, "real"], strict=True)
            rows = [_row(task.name, item, answer) for item, answer in pairs]
            path = evaluation.folder / f"{task.name}.json"
            write_text(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
            written.append(path)
    return written


def _row(name: str, item: Item, answer: Answer) -> dict[str, Any]:
    said = bare_choice(answer.answers.get("generate", ""), item.choices)
    known = {"answer": item.truth[0]} if item.truth else {}
    return {
        "id": item.id.removeprefix(f"{name}-"),
        "choices": item.choices,
        **known,
        **item.groups,
        **dict.fromkeys(_KEYS[name], said),
    }
