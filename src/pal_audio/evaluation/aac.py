"""Caption scores that need another environment: answers go to it, numbers come back, OUT/external.json keeps them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.evaluation.external import score_with_aac_metrics
from pal_audio.evaluation.report import EXTERNAL
from pal_audio.evaluation.scoring import read_evaluation


def score_captions(folder: Path, python: Path, metrics: Sequence[str], timeout_s: float) -> Path:
    """Score every caption task of an evaluation by aac-metrics.

    Args:
        folder: OUT.
        python: of an environment that has aac-metrics.
        metrics: its names.
        timeout_s: for each task.

    Raises:
        PalError: there is no caption task, or the tool fails.
    """
    evaluation = read_evaluation(folder)
    tasks = [task for task in evaluation.info.tasks if task.kind == "caption" and "generate" in task.methods]
    if not tasks:
        raise PalError(f"{folder}: aac-metrics scores captions, and no task of this evaluation asks for them")
    found = {}
    for task in tasks:
        items, answers = evaluation.items[task.name], evaluation.answers[task.name, "real"]
        texts = [answer.answers.get("generate", "") for answer in answers]
        references = [item.truth for item in items]
        scores = score_with_aac_metrics(python, texts, references, list(metrics), timeout_s)
        found[task.name] = {"by": f"aac-metrics {scores.version}", "scores": scores.corpus}
    write_text(folder / EXTERNAL, json.dumps(found, indent=2) + "\n")
    return folder / EXTERNAL
