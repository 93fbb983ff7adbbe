"""A whole call of `pal bench train` or `infer`: the machine's rates, the rows, the files."""

import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pal_audio.bench import ahead, measure
from pal_audio.bench.case import Case
from pal_audio.bench.store import OUT_OF_MEMORY, Row, Store
from pal_audio.errors import PalError

Measure = Callable[[Case, torch.device, dict[str, float]], Row]


def find_device(name: str | None) -> torch.device:
    """The device by name; None: a GPU where there is one.

    Raises:
        PalError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise PalError(f"device {name!r} is unknown; write cpu or cuda") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        raise PalError(f"device {name!r} is not here; torch sees {'a GPU' if torch.cuda.is_available() else 'no GPU'}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def run(
    verb: str,
    groups: Sequence[Sequence[Case]],
    measure_case: Measure,
    device: torch.device,
    out: Path | None,
    command: str,
    on_case: Callable[[str], Any] = lambda title: None,
    compile_ahead: int = 0,
) -> tuple[Row, list[list[Row]]]:
    """Measure groups, or take their kept rows, and write results.

    Args:
        verb: "train" or "infer".
        groups: see `case.Sweep.groups`.
        measure_case: makes one row.
        device: see `find_device`.
        out: folder of rows and results; None: nothing is written.
        command: for the header.
        on_case: told of each case before it runs.
        compile_ahead: processes that compile cases first, see `bench.ahead`; 0: each is compiled when it is measured.

    Returns:
        the header, and the rows of each group with their ratios.
    """
    header: Row = {
        "verb": verb,
        "run": uuid.uuid4().hex[:12],
        "date": measure.now(),
        "command": command,
        "hardware": measure.hardware(device),
    }
    store = Store(out, verb, header)
    rates: dict[str, float] = {}

    def one(case: Case) -> Row:
        on_case(case.title())
        if not rates:
            dtype = torch.float32 if case.setup.precision == "float32" else torch.bfloat16
            rates.update(matrix_flops=measure.matrix_rate(device, dtype), bandwidth_bytes=measure.bandwidth(device))
            header["rates"] = rates
        return guarded(lambda: measure_case(case, device, dict(rates)), device)

    if compile_ahead:
        ahead.compile_ahead(verb, store.missing(groups), device, compile_ahead, on_case)
    rows = store.measure(groups, one)
    store.write(rows)
    return header, rows


def guarded(measure_one: Callable[[], Row], device: torch.device) -> Row:
    """A row with its `error`, None where all went well. The device is as empty afterwards as before.

    A case that does not fit is a result. Any other failure is kept in its row too, so that a long sweep goes on; such rows
    are measured again by the next call.
    """
    row: Row = {"error": None}
    try:
        row |= measure_one()
    except (RuntimeError, ValueError, TypeError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        is_memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
        row = {"compared": [], "error": OUT_OF_MEMORY if is_memory else what}
    measure.clean(device)
    return row


def failures(groups: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows whose error is not that they do not fit."""
    return [row for group in groups for row in group if row["error"] not in (None, OUT_OF_MEMORY)]
