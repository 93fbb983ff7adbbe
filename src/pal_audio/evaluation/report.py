"""OUT/report.md and the pictures, from scores.json alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.evaluation.plots import draw
from pal_audio.evaluation.scoring import DEAF, LISTENS, SCORES
from pal_audio.training.report import cell, table

SUMMARY = ("task", "answered by", "n", "score", "", "95% interval", "best guess", "listens?")
REPORT, EXTERNAL = "report.md", "external.json"
_NUM_LEFT_OUT = 20
_PERCENT = {"accuracy", "accuracy_as_written", "macro_f1", "micro_f1", "mAP", "wer", "cer", "label_ranking_ap"}
_PERCENT_TOO = ("bleu_",)
_NOT_DRAWN = "Pictures were not drawn: matplotlib is not installed; `pip install 'pal-audio[plot]'` brings it."


def write_report(folder: Path) -> Path:
    """Write the report of a scored evaluation.

    Raises:
        PalError: there are no scores.
    """
    try:
        scores = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    except OSError as error:
        raise PalError(f"{folder}: not scored ({error.strerror}: {SCORES}); run `pal eval score {folder}`") from error
    external = json.loads((folder / EXTERNAL).read_text(encoding="utf-8")) if (folder / EXTERNAL).is_file() else {}
    pictures = draw(scores, folder)
    blocks = [
        f"# Evaluation of {cell(scores['model'])}",
        f"Model fingerprint `{scores['fingerprint']}`, on {scores['device']}, batches of {scores['batch_size']}, "
        f"pal {scores['pal_version']}. Answers: `answers.jsonl`; items with their truths: `items.jsonl`.",
        "Intervals are 95% bootstrap intervals over source clips. An item without an answer counts as wrong. "
        "A model *listens* if the interval of its score with the real sound minus that with another item's sound lies above 0.",
        table(SUMMARY, summary(scores)),
    ]
    if scores["left_out"]:
        blocks += ["## Tasks left out", _list([f"{name}: {reason}" for name, reason in scores["left_out"].items()])]
    for name, task in scores["tasks"].items():
        blocks += _task(name, task, external.get(name, {}), (pictures or {}).get(name, []), scores["rendered"][name])
    if pictures is None:
        blocks.append(_NOT_DRAWN)
    write_text(folder / REPORT, "\n\n".join(blocks) + "\n")
    return folder / REPORT


def shown(name: str, value: float) -> str:
    """A score in the unit that papers print it in."""
    if name in _PERCENT or name.startswith(_PERCENT_TOO):
        return f"{100 * value:.1f}%"
    return f"{value:g}" if isinstance(value, int) else f"{value:.3f}"


def summary(scores: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row of `SUMMARY` for each task and way to answer."""
    rows: list[tuple[str, ...]] = []
    for name, task in scores["tasks"].items():
        for method, found in task["methods"].items():
            if found["score"] is None:
                rows.append((name, method, str(task["num_items"]), "no truth to judge by", "", "", "", ""))
                continue
            headline = found["headline"]
            guess = task.get("best_guess")
            rows.append(
                (
                    name,
                    method,
                    str(task["num_judged"]),
                    headline,
                    shown(headline, found["score"]),
                    _interval(headline, found["interval"]),
                    "" if guess is None else shown("accuracy", guess),
                    _listening(found),
                )
            )
    return rows


def _task(name: str, task: dict[str, Any], external: dict[str, Any], pictures: list[str], rendered: dict[str, str]) -> list[str]:
    num = f"{task['num_items']} items, {task['num_sources']} source clips"
    if task["num_items"] < task["num_in_set"]:
        num += f", a part of the {task['num_in_set']} of this split"
    facts = [f"split {task['split']}; {num}; version {task['version']}; at most {task['max_new_tokens']} new tokens, greedy"]
    if task["num_judged"] < task["num_items"]:
        facts.append(f"{task['num_items'] - task['num_judged']} items have no known truth and are not judged")
    if "normaliser" in task:
        facts.append(f"normaliser of both sides: {task['normaliser']}")
    facts += [f"condition {condition} left out: {reason}" for condition, reason in task["conditions_left_out"].items()]
    left_out = task["left_out"]
    facts.append(f"left out: {len(left_out)} items" + (", counted as wrong" if left_out else ""))
    blocks = [f"## {name}", _list(facts)]
    if left_out:
        more = [f"... and {len(left_out) - _NUM_LEFT_OUT} more; see answers.jsonl"] if len(left_out) > _NUM_LEFT_OUT else []
        blocks += ["Left out:", _list([f"{item['id']}: {item['reason']}" for item in left_out[:_NUM_LEFT_OUT]] + more)]
    for method, found in task["methods"].items():
        blocks += _method(method, found, rendered[method])
    scored = [f"{metric}: {value:.4g}" for metric, value in external.get("scores", {}).items()]
    if scored:
        blocks += [f"By {external['by']}:", _list(scored)]
    missing = [f"{metric}: {why}" for metric, why in task["not_computed"].items() if metric not in external.get("scores", {})]
    if missing:
        blocks += ["Not computed:", _list(missing)]
    return blocks + [f"![{Path(picture).stem}]({picture})" for picture in pictures]


def _method(method: str, found: dict[str, Any], rendered: str) -> list[str]:
    prompt = found["prompt"]
    facts = [
        "prompt: " + ("each item's own question" if prompt is None else _code(prompt)),
        f"the first item as the model reads it: {_code(json.dumps(rendered, ensure_ascii=False))}",
        f"read by: {found['parser']}",
    ]
    if "embedder" in found:
        facts.append(f"text embedder: {found['embedder']}; numbers of two embedders cannot be compared")
    blocks = [f"### {method}"]
    if found["score"] is None:
        return [*blocks, _list(facts)]
    facts.append(f"unparsable answers: {found['num_unparsable']}")
    facts += [f"{metric}: {shown(metric, value)}" for metric, value in found["others"].items()]
    headline = found["headline"]
    rows = [("real", shown(headline, found["score"]), _interval(headline, found["interval"]), "", "", "")]
    for condition, other in found["conditions"].items():
        by = other["compared_by"]
        difference = shown(by, other["difference"]) + ("" if by == headline else f" ({by})")
        interval = _interval(by, other["interval"])
        rows.append((condition, shown(headline, other["score"]), "", difference, interval, f"{other['p_value']:.4f}"))
    blocks += [_list(facts), table(("heard", headline, "95% interval", "real is better by", "95% interval", "p"), rows)]
    blocks.append(f"**{_sentence(found)}**")
    for key, groups in found["breakdown"].items():
        lines = [
            (name, str(group["num"]), shown(headline, group["score"]), _interval(headline, group["interval"]))
            for name, group in groups.items()
        ]
        blocks.append(table((key, "n", headline, "95% interval"), lines))
    return blocks


def _sentence(found: dict[str, Any]) -> str:
    if found["listening"] == LISTENS:
        return "It listens: another item's sound makes it worse."
    if found["listening"] == DEAF:
        return "It does not listen: with another item's sound it does no worse, or the difference is within chance."
    return "Whether it listens was not tested: the condition shuffled was not asked."


def _listening(found: dict[str, Any]) -> str:
    return {LISTENS: "yes", DEAF: "does not listen"}.get(found["listening"], found["listening"])


def _interval(name: str, interval: Sequence[float] | None) -> str:
    return "one source" if interval is None else f"{shown(name, interval[0])} to {shown(name, interval[1])}"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _code(text: str) -> str:
    """On one line as code, whatever backticks it holds."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence}{line}{fence}" if len(fence) == 1 else f"{fence} {line} {fence}"
