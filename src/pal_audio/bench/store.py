"""Rows of a benchmark on disk, and their ratios to the other rows of their group.

OUT/rows.jsonl     every measured row, appended as it is done: what a sweep resumes from
OUT/results.json   header and the rows of the last call's groups, with ratios; OUT/results.csv the same flat
"""

import csv
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pal_audio.bench.case import Case
from pal_audio.errors import PalError

Row = dict[str, Any]
OUT_OF_MEMORY = "out of memory"
"""The error of a case that does not fit: a result, unlike any other error."""
SAME_MACHINE = ("device", "cuda", "torch", "transformers", "commit")
"""A row is kept where these are unchanged."""


@dataclass
class Store:
    """Rows of one verb in a folder.

    Args:
        folder: OUT; None keeps rows in memory only.
        verb: "train" or "infer".
        header: hardware, versions, command, date and run of this call.
    """

    folder: Path | None
    verb: str
    header: Row
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._file.is_file():
            text = self._file.read_text()
            self.rows = [row for row in map(_read, text.splitlines()) if row is not None]
            if text and not text.endswith("\n"):  # a kill cut the last row short
                with self._file.open("a") as file:
                    file.write("\n")

    @property
    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / "rows.jsonl"

    def find(self, case: Case, run: str | None = None) -> list[Row]:
        """Kept rows of a case on this machine, newest last; of one run only where it is named."""
        return [
            row
            for row in self.rows
            if row["key"] == case.key
            and row["verb"] == self.verb
            and (run is None or row["run"] == run)
            and all(row["hardware"][name] == self.header["hardware"][name] for name in SAME_MACHINE)
        ]

    def whole_run(self, group: Sequence[Case]) -> str | None:
        """The newest run that measured all cases of a group without a failure, so that their ratios are fair."""
        runs = [row["run"] for row in self.find(group[-1])]

        def is_whole(run: str) -> bool:
            return all(rows and rows[-1]["error"] in (None, OUT_OF_MEMORY) for rows in (self.find(case, run) for case in group))

        return next((run for run in reversed(runs) if is_whole(run)), None)

    def add(self, case: Case, values: Row) -> Row:
        """Keep a row, on disk at once."""
        row = {
            "key": case.key,
            "verb": self.verb,
            "run": self.header["run"],
            "title": case.title(),
            "case": case.model_dump(mode="json"),
            "hardware": self.header["hardware"],
            **values,
        }
        self.rows.append(row)
        if self.folder is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return row

    def missing(self, groups: Sequence[Sequence[Case]]) -> list[Case]:
        """Cases that `measure` would measure, each once."""
        cases = [case for group in groups if self.whole_run(group) is None for case in group]
        return list({case.key: case for case in cases}.values())

    def measure(self, groups: Sequence[Sequence[Case]], measure: Callable[[Case], Row]) -> list[list[Row]]:
        """Rows of each group, all of one run: kept ones where a run has them all, else measured now, each case once.

        The cheapest come first: PLITS on hours of sound takes minutes, and a call that is stopped then has the other rows.
        """
        found = []
        for group in groups:
            run = self.whole_run(group)
            if run is None:
                run = self.header["run"]
                for case in sorted(group, key=lambda case: case.operations):
                    if not self.find(case, run):
                        self.add(case, measure(case))
            found.append(with_ratios([self.find(case, run)[-1] for case in group]))
        return found

    def write(self, groups: list[list[Row]]) -> None:
        """results.json and results.csv."""
        if self.folder is None:
            return
        content = json.dumps({"header": self.header, "groups": groups}, indent=1)
        _replace(self.folder / "results.json", content + "\n")
        flat = [_flat(row) | {"group": number} for number, group in enumerate(groups) for row in group]
        names = list(dict.fromkeys(name for row in flat for name in row))
        temporary = self.folder / "results.csv.tmp"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(flat)
        temporary.replace(self.folder / "results.csv")


def with_ratios(group: list[Row]) -> list[Row]:
    """Rows with `ratios` to PLITS and text: the other's value over this one's (time, operations), or this one's over its (bytes).

    A speed-up above 1 is faster than the other, that of the operations is its bound; a memory ratio below 1 is smaller. None
    where a row has no number.
    """
    by_name = {row["case"]["integration"]: row for row in group}
    result = []
    for row in group:
        ratios: Row = {}
        for other in ("plits", "text"):
            base = by_name[other]
            for name in row["compared"]:
                mine, theirs = row.get(name), base.get(name)
                if not name.endswith("_bytes"):
                    mine, theirs = theirs, mine
                ratios[f"{name.removesuffix('_s').removesuffix('_bytes')}_{other}"] = mine / theirs if mine and theirs else None
        result.append(row | {"ratios": ratios})
    return result


def read_results(path: Path) -> list[Row]:
    """Rows of a results.json, or of a rows.jsonl.

    Raises:
        PalError: it is neither.
    """
    try:
        text = path.read_text()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines()]
        return [row for group in json.loads(text)["groups"] for row in group]
    except (ValueError, KeyError, TypeError) as error:
        raise PalError(f"{path}: no results of `pal bench`; give its results.json") from error


def _read(line: str) -> Row | None:
    """A row, or None for one that a kill cut short."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _flat(row: Row, before: str = "") -> Row:
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}.")
        elif not isinstance(value, list):
            flat[before + name] = value
    return flat


def _replace(path: Path, content: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content)
    temporary.replace(path)
