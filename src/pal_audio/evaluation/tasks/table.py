"""One's own table: path[,start_s,end_s],label or path[,start_s,end_s],question,answer, as `pal data import csv` reads it.

With labels the question is which of the table's labels it is; several in a row ("; ") make the table multi-label. With questions
the answers are judged word for word. A table with a column `split`, or several tables, is read whole.
"""

from __future__ import annotations

from pathlib import Path

from pal_audio.data.importers.plain_csv import CSV
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import ALL, Place, Task, importer_items, one_table


def _labelled(root: Path, most: int) -> list[Item]:
    table = one_table(root, (".csv",))
    examples = [found.example for found in CSV.read(table)]
    if any("labels" not in example.meta for example in examples):
        raise PalError(f"{table}: no column label; a table of questions and answers is task csv-answers")
    labels = sorted({label for example in examples for label in example.meta["labels"]})
    many = next((example.id for example in examples if len(set(example.meta["labels"])) > most), None)
    if many is not None:
        raise PalError(f"{table}: {many} has several labels; score such a table by task csv-tags")
    return importer_items(
        CSV, table, ALL, lambda example: Item.of(example, truth=sorted(set(example.meta["labels"])), choices=labels)
    )


def _answered(place: Place) -> list[Item]:
    table = one_table(place.root, (".csv",))
    return importer_items(CSV, table, ALL, lambda example: Item.of(example, truth=[example.answer or ""]))


_LABELS = "a CSV table with columns path[,start_s,end_s],label"
TASKS = (
    Task("csv", "classify", _LABELS, "your own", lambda place: _labelled(place.root, 1), (ALL,), ("rank", "generate"),
         "What sound is this?", takes_file=True),
    Task("csv-tags", "tags", f'{_LABELS}, several labels separated by "; "', "your own",
         lambda place: _labelled(place.root, 10**6), (ALL,), ("rank",), "Which sounds are in this recording?", takes_file=True),
    Task("csv-answers", "exact", "a CSV table with columns path[,start_s,end_s],question,answer", "your own", _answered, (ALL,),
         takes_file=True),
)  # fmt: skip
