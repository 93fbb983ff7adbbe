"""Predictions against measured rows, and the fit of the constants that predictions stand on."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pal_audio.bench import estimate
from pal_audio.bench.case import Case
from pal_audio.bench.estimate import Card, Constants, Way
from pal_audio.bench.store import Row
from pal_audio.errors import PalError
from pal_audio.integration.cost import LlmShape, Work

MEMORY_GOAL, TIME_GOAL = 0.15, 0.25
"""Relative errors that predictions should stay within."""
MAX_ROUNDS = 20


def check(results: Sequence[Row]) -> list[Row]:
    """Prediction against measurement, for each training row that was measured.

    Returns:
        rows with `memory_error` and `time_error` (predicted over measured, less 1; None where not measured) and `fitted`:
        True where the constants were fitted on this LLM's rows, which then prove nothing.
    """
    found = []
    for row in usable(results):
        llm, work, way, card = of_row(row)
        constants = way.constants
        peak = estimate.training_memory(llm, work, way).peak
        seconds = estimate.step_seconds(llm, work, way, card)
        found.append(
            {
                "title": f"{row['case']['setup']['llm']} {row['title']}",
                "way": way.name,
                "peak_bytes": row["peak_bytes"],
                "predicted_bytes": peak,
                "memory_error": None if row["peak_bytes"] is None else peak / row["peak_bytes"] - 1,
                "step_s": row["step_s"],
                "predicted_s": seconds,
                "time_error": seconds / row["step_s"] - 1,
                "fitted": row["case"]["setup"]["llm"] in constants.fitted_on,
                "constants": constants.provenance,
            }
        )
    return found


def summary(checked: Sequence[Row]) -> Row:
    """How many rows that the constants were not fitted on stay within the goals, and the largest errors."""
    counted = [row for row in checked if not row["fitted"]]
    result: Row = {"rows": len(checked), "counted": len(counted)}
    for name, goal in (("memory_error", MEMORY_GOAL), ("time_error", TIME_GOAL)):
        errors = [abs(row[name]) for row in counted if row[name] is not None]
        result |= {f"{name}_within": sum(error <= goal for error in errors), f"{name}_of": len(errors)}
        result[f"{name}_max"] = max(errors, default=None)
    return result


def usable(results: Sequence[Row]) -> list[Row]:
    """Training rows with numbers, each once."""
    found = {(row["key"], row["run"]): row for row in results if row["verb"] == "train" and row["error"] is None}
    return list(found.values())


def of_row(row: Row) -> tuple[LlmShape, Work, Way, Card]:
    """What a measured row was of."""
    case = Case.model_validate(row["case"])
    way = Way(case.setup.precision, case.setup.compile != "none")
    rates = row["rates"]
    memory = row["hardware"]["memory_bytes"] or float("inf")
    return case.llm, case.work(), way, Card(rates["matrix_flops"], rates["bandwidth_bytes"], memory)


def fit(results: Sequence[Row], provenance: str) -> dict[str, Constants]:
    """Constants by way to compute, by least squares of relative errors, none below zero.

    Raises:
        PalError: there are no rows, or too few of a way.
    """
    by_way: dict[str, list[Row]] = {}
    for row in usable(results):
        by_way.setdefault(of_row(row)[2].name, []).append(row)
    if not by_way:
        raise PalError("no training row to fit on")
    return {name: _fit_one(group, name, provenance) for name, group in by_way.items()}


def _fit_one(group: list[Row], name: str, provenance: str) -> Constants:
    constants = Constants()
    if len(group) < 4:
        raise PalError(f"{name}: {len(group)} rows are too few for a fit; at least 4")
    kept, features, peaks = [], [], []
    for row in group:
        llm, work, way, _ = of_row(row)
        memory = estimate.training_memory(llm, work, way, constants)
        fixed = memory.weights + memory.optimizer
        if row["peak_bytes"] is None or work.checkpointing or row["peak_bytes"] < 1.05 * (fixed + memory.backward_end):
            continue  # not measured, or a peak that says nothing of what the forward pass keeps
        text, audio, logits = estimate.kept_bytes(llm, work, way, constants)
        kept.append(row["peak_bytes"] - fixed - estimate.beside_kept_bytes(llm, work, way))
        features.append((text, audio, logits / constants.logit_bytes))
        peaks.append(row["peak_bytes"])
    what = "rows (time alone) of" if len(kept) < 3 else "rows of"
    if len(kept) >= 3:
        text, audio, logit = nonnegative(features, kept, peaks)
        constants = replace(constants, text_kept=text, audio_kept=audio, logit_bytes=logit)
    llms = tuple(sorted({row["case"]["setup"]["llm"] for row in group}))
    return replace(
        constants,
        **_fit_times(group, name),
        fitted_on=llms,
        provenance=f"{provenance}: {len(group)} {what} {', '.join(llms)}",
    )


def _fit_times(group: list[Row], name: str) -> dict[str, float]:
    """Constants of time: rows are the device's or the host's, whichever the last fit says takes longer, until that stands.

    At first those are the device's that reach a third of its floor.

    Raises:
        PalError: none is the device's.
    """
    of_device, of_host, seconds = [], [], [row["step_s"] for row in group]
    for row in group:
        llm, work, way, card = of_row(row)
        linear, attention, moved = estimate.time_features(llm, work, way)
        of_device.append((linear / card.flops, attention / card.flops, moved / card.bandwidth_bytes))
        of_host.append(estimate.launch_features(llm, work))
    busy = [sum(floor) > second / 3 for floor, second in zip(of_device, seconds, strict=True)]
    device, host = [0.0] * 3, [0.0] * 4
    for _ in range(MAX_ROUNDS):
        chosen = [number for number, is_busy in enumerate(busy) if is_busy]
        others = [number for number, is_busy in enumerate(busy) if not is_busy]
        device = _chosen(of_device, seconds, chosen) if chosen else [0.0] * 3
        host = _chosen(of_host, seconds, others) if others else [0.0] * 4
        found = [bool(np.dot(one, device) > np.dot(other, host)) for one, other in zip(of_device, of_host, strict=True)]
        if found == busy:
            break
        busy = found
    if not any(busy):
        raise PalError(
            f"{name}: every one of {len(group)} rows waits for the host, so they say nothing of the device; "
            "add rows of larger batches or longer audio"
        )
    names = "linear_cost", "attention_cost", "traffic", "step_launch_s", "launch_s", "audio_launch_s", "summary_launch_s"
    return dict(zip(names, [*device, *host], strict=True))


def _chosen(features: Sequence[Sequence[float]], seconds: Sequence[float], numbers: Sequence[int]) -> list[float]:
    values = [seconds[number] for number in numbers]
    return nonnegative([features[number] for number in numbers], values, values)


def nonnegative(features: Sequence[Sequence[float]], values: Sequence[float], scales: Sequence[float]) -> list[float]:
    """Coefficients >= 0 with the least sum of squared errors over scales: the best of all choices of what is above zero."""
    matrix = np.asarray(features) / np.asarray(scales)[:, None]
    target = np.asarray(values) / np.asarray(scales)
    best, best_error = np.zeros(matrix.shape[1]), float(target @ target)
    columns = range(matrix.shape[1])
    for size in range(1, matrix.shape[1] + 1):
        for chosen in itertools.combinations(columns, size):
            found = np.linalg.lstsq(matrix[:, chosen], target, rcond=None)[0]
            error = float(np.square(matrix[:, chosen] @ found - target).sum())
            if (found >= 0).all() and error < best_error * (1 - 1e-9):
                best, best_error = np.zeros(matrix.shape[1]), error
                best[list(chosen)] = found
    return [float(value) for value in best]
