"""The report of a finished run: OUT/report.md and OUT/curves.png, from what lies in the run's folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pal_audio.data.manifest import write_text

_CURVES = "curves.png"
_NUM_ANSWERS = 10
_NOT_DRAWN = "The curves were not drawn: matplotlib is not installed; `pip install 'pal-audio[plot]'` brings it."


def write_report(folder: Path, plan: Sequence[str]) -> Path:
    """Write report.md, and curves.png where matplotlib is installed.

    Args:
        folder: of a run with recipe.json, log.jsonl, scores.json and, where questions were asked, answers.jsonl.
        plan: the lines that the run printed before it began.
    """
    described = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    records = _rows(folder / "log.jsonl")
    picture = f"![loss, learning rate and gradient norm]({_CURVES})" if draw_curves(records, folder / _CURVES) else _NOT_DRAWN
    blocks = [
        f"# {cell(described['recipe']['name'])}",
        "## Plan",
        "\n".join(f"- {cell(line)}" for line in plan),
        "## Scores",
        *_scores_of_stages(scores),
        *_scores_of_answers(scores),
        "## Curves",
        picture,
        *(_answers(_rows(folder / "answers.jsonl")) if "accuracy" in scores else []),
        "## Versions",
        table(("package", "version"), list(described["versions"].items())),
    ]
    write_text(folder / "report.md", "\n\n".join(blocks) + "\n")
    return folder / "report.md"


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw loss, learning rates and gradient norm, a column a stage.

    Args:
        records: rows of log.jsonl.
        path: of the picture.

    Returns:
        False, and nothing drawn, where matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    from matplotlib.figure import Figure

    stages = sorted({row["index"] for row in records})
    figure = Figure(figsize=(4 * len(stages), 7), layout="constrained")
    axes = figure.subplots(3, len(stages), squeeze=False)
    for column, index in enumerate(stages):
        rows = [row for row in records if row["index"] == index]
        steps = [row["step"] for row in rows]
        loss, rate, norm = axes[:, column]
        loss.set_title(rows[0]["stage"], parse_math=False)
        loss.plot(steps, [row["loss"] for row in rows])
        evaluated = [row for row in rows if "held_out_loss" in row]
        if evaluated:
            loss.plot([row["step"] for row in evaluated], [row["held_out_loss"] for row in evaluated], "o-", label="held out")
            loss.legend()
        for part in rows[0]["learning_rates"]:
            rate.plot(steps, [row["learning_rates"][part] for row in rows], label=part)
        rate.legend()
        norm.plot(steps, [row["gradient_norm"] for row in rows])
        norm.set_xlabel("step")
    for axis, name in zip(axes[:, 0], ("loss", "learning rate", "gradient norm"), strict=True):
        axis.set_ylabel(name)
    figure.savefig(path, dpi=100)
    return True


def _scores_of_stages(scores: dict[str, Any]) -> list[str]:
    rows = [
        (item["stage"], item["objective"], name, f"{value:g}" if isinstance(value, int) else f"{value:.3f}")
        for item in scores.get("stages", [])
        for name, value in item["scores"].items()
    ]
    return ["Held out, at the end of its stage:", table(("stage", "objective", "score", "value"), rows)] if rows else []


def _scores_of_answers(scores: dict[str, Any]) -> list[str]:
    if "accuracy" not in scores:
        return []
    return [
        f"Of {scores['num']} held-out questions. Muted: silence instead of sound. Best guess: without listening.",
        table(("task", "right", "muted", "best guess"), [_score_row(task, scores) for task in scores["accuracy"]]),
    ]


def _answers(answers: list[dict[str, Any]]) -> list[str]:
    num_shown = min(_NUM_ANSWERS, len(answers))
    shown = [answers[number * len(answers) // num_shown] for number in range(num_shown)]
    rows = [(row["question"], row["truth"], row["answer"], "yes" if row["right"] else "no") for row in shown]
    head = [f"## {len(shown)} answers", "Evenly spaced over the held-out questions."]
    return [*head, table(("question", "truth", "answer", "right"), rows)]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _score_row(task: str, scores: dict[str, Any]) -> tuple[str, ...]:
    guess = scores["chance"] if task == "all" else scores["chance_by_task"][task]
    return (task, *(f"{share:.1%}" for share in (scores["accuracy"][task], scores["muted"][task], guess)))


def table(names: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell(text) for text in line)} |" for line in lines)


def cell(text: str) -> str:
    """On one line, and never the end of a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
