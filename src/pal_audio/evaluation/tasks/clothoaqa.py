"""ClothoAQA: six questions a clip, each answered by three people with yes, no, or one word.

The truth is what most of the three said (of a tie the first in the table), judged word for word, punctuation and case aside.
Yes-no questions and the others are also scored apart, since guessing gets much of the former.
Source: Lipping et al., "Clotho-AQA" (2022); taking the majority is our choice.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pal_audio.data.importers.base import asked, found_tables
from pal_audio.data.importers.tables import csv_rows
from pal_audio.errors import PalError
from pal_audio.evaluation.items import Item
from pal_audio.evaluation.tasks.base import Place, Task, with_sound

INSTRUCTION = "Answer with one word."
_COLUMNS = ("file_name", "QuestionText", "answer")
_AUDIO = ("audio_files", "audio", ".")


def _items(place: Place) -> list[Item]:
    root, split = place.root, place.split
    name = f"clotho_aqa_{split}.csv"
    table = found_tables(root, {name: split}, (".", "ClothoAQA", "clotho_aqa"), "ClothoAQA")[name]
    folder = next((table.parent / place for place in _AUDIO if (table.parent / place).is_dir()), table.parent)
    answers: dict[tuple[str, str], list[str]] = {}
    for number, row in csv_rows(table, _COLUMNS):
        file, question, answer = (row[column].strip() for column in _COLUMNS)
        if not file or not question or not answer or Path(file).name != file:
            raise PalError(f"{table}, line {number}: file_name {file!r}, QuestionText {question!r}, answer {answer!r}")
        answers.setdefault((file, question), []).append(answer.lower())
    items = []
    for number, ((file, question), said) in enumerate(answers.items(), start=1):
        truth = Counter(said).most_common(1)[0][0]
        example = asked(f"clothoaqa-{split}-{number}", [folder / file], f"{question}\n{INSTRUCTION}", truth, "answer")
        groups = {"answers": "yes or no" if set(said) <= {"yes", "no"} else "one word"}
        items.append(with_sound(Item.of(example, truth=[truth], groups=groups)))
    return items


TASKS = (
    Task(
        "clothoaqa",
        "exact",
        "clotho_aqa_{train,val,test}.csv and audio_files/",
        "clotho_aqa_*.csv and audio_files.zip (Zenodo, record 6473207)",
        _items,
        ("test", "val", "train"),
        max_new_tokens=8,
    ),
)
