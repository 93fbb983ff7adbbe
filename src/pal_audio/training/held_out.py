"""The held-out questions of a finished run: answered with sound and muted, written, and shown as a table."""

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import write_text
from pal_audio.data.prepare import Prepared
from pal_audio.data.texts import Document
from pal_audio.training.scores import accuracy, answer_all


def score_answers(console: Console, folder: Path, model: Any, collator: Collator, data: Prepared) -> dict[str, Any]:
    """Answer all held-out questions.

    Args:
        console: for progress and the table.
        folder: of the run; answers.jsonl is written there.
        model: is moved to the GPU where there is one.
        collator: makes the batches.
        data: has the questions, and what guessing gets.

    Returns:
        What scores.json says of them.
    """
    test_set = [example for example in data.test if not isinstance(example, Document)]
    model.to("cpu" if not torch.cuda.is_available() else "cuda").eval()
    with progress_bar(console) as bar:
        task = bar.add_task("held-out questions", total=2 * len(test_set))
        heard = answer_all(model, collator, test_set, progress=lambda done: bar.advance(task, done))
        muted = answer_all(model, collator, test_set, muted=True, progress=lambda done: bar.advance(task, done))
    right, right_muted = accuracy(heard), accuracy(muted)
    rows = [{**vars(a), "right": a.right, "muted_answer": m.answer} for a, m in zip(heard, muted, strict=True)]
    write_text(folder / "answers.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    scores = {
        "num": len(test_set),
        "accuracy": right,
        "muted": right_muted,
        "chance": data.chance,
        "chance_by_task": data.chance_by_task,
    }
    table = Table("task", "questions", "right", "muted", "best guess", title="held-out questions")
    for name, share in right.items():
        num = sum(name in ("all", answer.task) for answer in heard)
        guess = data.chance if name == "all" else data.chance_by_task[name]
        table.add_row(name, str(num), f"{share:.1%}", f"{right_muted[name]:.1%}", f"{guess:.1%}")
    console.print(table)
    return scores


def progress_bar(console: Console) -> Progress:
    """How a run shows what is done, what there is in all, and the time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
