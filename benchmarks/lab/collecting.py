"""A finished run with its evaluation -> OUT/results/ARM-SEED.json, small enough to travel."""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal_audio.errors import PalError
from pal_audio.evaluation.scoring import read_evaluation
from pal_audio.training.scores import normalise

FORMAT = 1
_WARM_UP = 5  # steps whose time does not count


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Lines of a JSON Lines file; none where it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def described_run(run: Path, jobs: int) -> dict[str, Any]:
    """What a finished run cost, learnt and came from.

    Args:
        run: its folder.
        jobs: how many ran on the machine at once, which its time and memory are to be read with.
    """
    log = rows_of(run / "log.jsonl")
    told = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    surroundings = (told.get("resumed") or [told])[-1]
    seconds = np.array([row["seconds"] for row in log])
    timed = seconds[_WARM_UP:] if len(seconds) > 2 * _WARM_UP else seconds
    peaks = [row["peak_bytes"] for row in log if row.get("peak_bytes")]
    held_out = [row["held_out_loss"] for row in log if row.get("held_out_loss") is not None]
    stages = plan["stages"]
    trained = max(stages, key=lambda stage: stage["num_trained"])
    git = (surroundings.get("git") or {}).get("package") or {}
    return {
        "rates": {stage["name"]: stage["learning_rates"] for stage in stages},
        "parameters": {
            "trainable": trained["num_trained"], "total": trained["num_parameters"], "by_part": plan["parameters"],
        },
        "cost": {
            "steps": len(log), "train_s": float(seconds.sum()), "jobs": jobs, "peak_bytes": max(peaks) if peaks else None,
            "step_s": {name: float(np.quantile(timed, at)) for name, at in (("median", 0.5), ("p10", 0.1), ("p90", 0.9))},
        },
        "loss": {"first": log[0]["loss"], "last": log[-1]["loss"], "held_out": held_out[-1] if held_out else None},
        "curve": curve_of(run),
        "held_out": held_out_of(run),
        "machine": {"device": surroundings["device"], "cores": os.cpu_count(), "processor": platform.machine()},
        "versions": surroundings["versions"],
        "commit": git,
        "recipe_hash": told["identity"],
        "data_hash": _hash({os.path.basename(name): value for name, value in told["data"].items()}),
    }  # fmt: skip


def curve_of(run: Path) -> list[dict[str, Any]]:
    """Held-out loss and share of right answers at each evaluation during training; steps count on over stages."""
    ends: dict[int, int] = {}
    for row in rows_of(run / "log.jsonl"):
        ends[row["index"]] = row["step"]
    curve = []
    for row in rows_of(run / "samples.jsonl"):
        right = [normalise(answer["answer"]) == normalise(answer["truth"]) for answer in row["answers"]]
        before = sum(steps for index, steps in ends.items() if index < row["index"])
        share = float(np.mean(right)) if right else None
        curve.append({"step": before + row["step"], "loss": row["held_out_loss"], "right": share, "num": len(right)})
    return curve


def held_out_of(run: Path) -> dict[str, Any]:
    """Accuracy on the questions that choose rates: with sound, and with silence in its place."""
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    return {"num": scores["num"], "right": scores["accuracy"]["all"], "muted": scores["muted"]["all"]}


def task_scores(evaluation: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Each task's score and each item's part of it, in the order of the index.

    Values are a string of 1 (right) and 0 where the metric is accuracy, else errors and words of each item.

    Raises:
        PalError: the evaluation was not of these questions.
    """
    found = read_evaluation(evaluation)
    values: dict[str, Any] = {}
    for task in found.info.tasks:
        judged = found.judged(task, task.methods[0], "real", None)
        items = [found.items[task.name][number] for number in found.judgeable(task)]
        values |= dict(zip((item.id for item in items), judged.values.tolist(), strict=True))
    scored: dict[str, Any] = {}
    for name, task in index["tasks"].items():
        missing = [id for id in task["ids"] if id not in values]
        if missing:
            raise PalError(f"{evaluation}: {len(missing)} of the questions of {name} were not asked, the first is {missing[0]}")
        own = [values[id] for id in task["ids"]]
        in_words = task["metric"] == "errors"
        slices = {key: {"num": len(at), "score": score_of([own[i] for i in at])} for key, at in task["slices"].items()}
        kept: Any = [[int(errors), int(words)] for errors, words in own] if in_words else "".join(str(int(v)) for v in own)
        scored[name] = {"score": score_of(own), "num": len(own), "values": kept, "slices": slices}
    return scored


def score_of(values: Sequence[Any]) -> float:
    """Share of right answers, or errors over words."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.ndim == 1 else float(array[:, 0].sum() / max(1.0, array[:, 1].sum()))


def mean_score(tasks: dict[str, Any]) -> float:
    """Mean over tasks; of error rates 1 minus the rate, but not below 0."""
    values = [max(0.0, 1 - task["score"]) if isinstance(task["values"], list) else task["score"] for task in tasks.values()]
    return float(np.mean(values))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
