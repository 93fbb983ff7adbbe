"""The tables of the report, in Markdown."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np
from benchmarks.lab.analysis import Difference, Grid, as_array, cost_of, paired
from benchmarks.lab.recipes import PLITS

from pal_audio.training.report import table

CLAIMS = (
    ("LAL is as good as PLITS on general sound", "lal", "plits", "general sound", "non_inferior"),
    ("PAL (16 learned) is as good as PLITS on speech", "pal", "plits", "speech", "non_inferior"),
    ("PAL (16 learned) is as good as PLITS on order", "pal", "plits", "order", "non_inferior"),
    ("PAL (25 in time order) is as good as PLITS on speech", "pal-ordered", "plits", "speech", "non_inferior"),
    ("PAL (25 in time order) is as good as PLITS on order", "pal-ordered", "plits", "order", "non_inferior"),
    ("PAL (two encoders) is as good as PLITS on general sound", "pal-multi", "plits", "general sound", "non_inferior"),
    ("PAL (two encoders) is as good as PLITS on speech", "pal-multi", "plits", "speech", "non_inferior"),
    ("PAL (two encoders) is as good as PLITS on order", "pal-multi", "plits", "order", "non_inferior"),
    (
        "PAL (two encoders) is as good as PLITS (two) on general sound",
        "pal-multi",
        "plits-multi",
        "general sound",
        "non_inferior",
    ),
    ("PAL (two encoders) is as good as PLITS (two) on speech", "pal-multi", "plits-multi", "speech", "non_inferior"),
    ("PAL (two encoders) is as good as PLITS (two) on order", "pal-multi", "plits-multi", "order", "non_inferior"),
    ("PAL (two encoders) is better than LAL (two) on speech", "pal-multi", "lal-multi", "speech", "better"),
    ("25 pooled tokens are as good as PLITS on order", "plits-pooled", "plits", "order", "non_inferior"),
    ("PAL (16 learned) is better than LAL on speech", "pal", "lal", "speech", "better"),
    ("LAL needs no training of the FFN on general sound", "lal-frozen-ffn", "lal", "general sound", "non_inferior"),
    ("PAL (25 in time order) is better than its 25 tokens alone on speech", "pal-ordered", "plits-pooled", "speech", "better"),
)
"""Claim, first arm, second arm, group of tasks, and what is to be shown of their difference."""


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{percent(values[0])} (one seed)"
    return f"{percent(mean(values))} ({percent(min(values))} to {percent(max(values))})"


def tasks(grid: Grid) -> str:
    rows = []
    for name, task in grid.index["tasks"].items():
        means = [mean(grid.score(arm, seed, [name]) for seed in grid.seeds(arm)) for arm in grid.arms()]
        guess = "" if task["best_guess"] is None else percent(task["best_guess"])
        rows.append((name, task["group"], task["metric"], str(len(task["ids"])), guess, *map(percent, means)))
    return table(("task", "group", "%", "n", "best constant answer", *grid.arms()), rows)


def scores(grid: Grid, arms: Sequence[str], groups: dict[str, list[str]]) -> str:
    rows = []
    for arm in arms:
        seeds = grid.seeds(arm)
        cells = [_spread([grid.score(arm, seed, names) for seed in seeds]) for names in groups.values()]
        rows.append((arm, str(len(seeds)), *cells))
    rows.append(("best constant answer of each task", "", *(_guess(grid, names) for names in groups.values())))
    return table(("arm", "seeds", *(f"{group}, %" for group in groups)), rows)


def _guess(grid: Grid, names: Sequence[str]) -> str:
    told = [grid.index["tasks"][name] for name in names]
    if any(task["best_guess"] is None for task in told):
        return ""
    return percent(sum(task["best_guess"] * len(task["ids"]) for task in told) / sum(len(task["ids"]) for task in told))


def _interval(found: Difference) -> str:
    return f"{100 * found.interval.low:+.1f} to {100 * found.interval.high:+.1f}"


def claims(grid: Grid) -> str:
    rows = []
    for claim, first, second, group, what in CLAIMS:
        names = grid.groups().get(group, [])
        if not grid.shows(first, second):
            continue
        found = grid.difference(first, second, names) if names else None
        if found is None:
            rows.append((claim, f"{first} - {second}", group, "", "", "", "", "no pair of runs yet"))
            continue
        means = [mean(grid.score(arm, seed, names) for seed in found.seeds) for arm in (first, second)]
        both = " against ".join(map(percent, means))
        shown = f"{100 * found.value:+.1f}"
        rows.append((claim, f"{first} - {second}", group, _num(found), both, shown, _interval(found), getattr(found, what)))
    if not rows:
        return "None of these arms."
    return table(("claim", "difference", "on", "seeds", "scores, %", "points", "95% interval", "verdict"), rows)


def _num(found: Difference) -> str:
    return "ONE" if len(found.seeds) == 1 else str(len(found.seeds))


def differences(grid: Grid) -> str:
    groups, base = grid.groups(), grid.baseline()
    if base is None:
        return "No arm of PLITS has a result."
    rows = []
    for arm in (*grid.arms(), *grid.arms(ablations=True)):
        if arm == base:
            continue
        found = [grid.difference(arm, base, names) for names in groups.values()]
        cells = ["" if item is None else f"{100 * item.value:+.1f} ({_interval(item)})" for item in found]
        rows.append((arm, *({_num(item) for item in found if item is not None} or {""}), *cells))
    return table((f"arm minus {base}, points", "seeds", *groups), rows)


def cost_note(grid: Grid) -> str:
    found = [cost_of(grid, arm) for arm in grid.arms()]
    if all(cost.alone for cost in found):
        return "Time and memory are of runs that had the machine to themselves; times of training steps, without evaluations."
    shared = [arm for arm, cost in zip(grid.arms(), found, strict=True) if not cost.alone]
    return (
        f"Several runs shared the machine ({', '.join(shared)}): their time says how arms compare under that load, not how fast "
        "one is alone (`run --pace STEPS` measures that); peak memory is each process's own."
    )


def costs(grid: Grid, arms: Sequence[str]) -> str:
    name = grid.baseline()
    base = cost_of(grid, name) if name in grid.arms() else None
    rows = []
    for arm in arms:
        own = cost_of(grid, arm)
        memory = "not told" if own.peak_bytes is None else f"{own.peak_bytes / 2**20:,.0f}"
        less = _ratio(own.peak_bytes, None if base is None else base.peak_bytes)
        faster = _ratio(own.median, None if base is None or base.alone != own.alone else base.median)
        step = f"{1e3 * own.median:.1f} ({1e3 * own.p10:.1f} to {1e3 * own.p90:.1f})"
        rows.append((arm, f"{own.trainable:,}", f"{own.total:,}", memory, less, step, faster))
    of_base = f"of {name or PLITS}"
    names = ("arm", "trainable", "parameters", "peak MiB", of_base, "ms a step, median (p10 to p90)", of_base)
    return table(names, rows)


def _ratio(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.2f}"


def slices(grid: Grid) -> str:
    rows = []
    for arm in grid.arms():
        for task in grid.groups().get("speech", []):
            found = [grid.results[arm, seed]["tasks"][task]["slices"] for seed in grid.seeds(arm)]
            rows += [(arm, task, name, str(told["num"]), _spread([item[name]["score"] for item in found]))
                     for name, told in found[0].items()]  # fmt: skip
    return table(("arm", "task", "strings", "n", "word error rate, %"), rows) if rows else "No digit strings were asked."


def robust(grid: Grid) -> list[str]:
    told = {seed: item for seed, item in grid.robust.items() if (item["arm"], seed) in grid.results}
    if not told:
        return ["Not measured yet."]
    arm = next(iter(told.values()))["arm"]
    seeds = sorted(seed for seed, item in told.items() if item["arm"] == arm)
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in told[seeds[0]]["tasks"]:
        condition, _, task = name.partition(": ")
        groups.setdefault((condition, grid.index["tasks"][task]["group"]), []).append((name, task))
    rows = []
    for (condition, group), names in groups.items():
        ours, theirs = _both(grid, told, arm, seeds, names)
        own = told[seeds[0]]["tasks"]
        sources = [grid.index["tasks"][task]["sources"][number] for name, task in names for number in own[name]["numbers"]]
        found = paired(ours, theirs, sources, seeds, grid.in_errors([names[0][1]]))
        rows.append((condition, group, str(found.num_items), f"{100 * found.value:+.1f}", _interval(found)))
    skipped = {f"{name}: {reason}" for item in told.values() for name, reason in item["skipped"].items()}
    lines = [f"Arm {arm}, {len(seeds)} seeds, a part of the same questions; the change against their own sound."]
    lines.append(table(("condition", "on", "items", "change, points", "95% interval"), rows))
    return lines + [f"Not made: {line}." for line in sorted(skipped)]


def elsewhere(grid: Grid) -> list[str]:
    """What the sound is, and the best arm's scores on it beside those on the world's nearest task."""
    seeds = sorted(grid.elsewhere)
    told = [grid.elsewhere[seed] for seed in seeds]
    arm, made_by = told[0]["arm"], told[0]["made_by"]
    rows = []
    for task, first in told[0]["tasks"].items():
        like = first["like"] if first["like"] in grid.index["tasks"] else None
        known = [grid.score(arm, seed, [like]) for seed in seeds if (arm, seed) in grid.results] if like is not None else []
        world = f"{like}: {_spread(known)}" if known else ""
        guess = "" if first["best_guess"] is None else percent(first["best_guess"])
        what = "errors over words" if first["metric"] == "errors" else "right"
        scores = _spread([item["tasks"][task]["score"] for item in told])
        rows.append((task, what, str(first["num"]), guess, scores, world))
        for name, part in first["slices"].items():
            rows.append((f"{task}: {name}", what, str(part["num"]), "",
                         _spread([item["tasks"][task]["slices"][name]["score"] for item in told]), ""))  # fmt: skip
    voices = f"{made_by['speech']}, voices {', '.join(made_by['voices'])}"
    line = f"Arm {arm}, {len(seeds)} seeds. {voices}; {made_by['notes']}, soundfont {made_by['soundfont']}."
    return [line, table(("task", "score", "n", "best constant answer, %", "%", "the world's own, %"), rows)]


def _both(grid: Grid, told: dict[int, dict[str, Any]], arm: str, seeds: Sequence[int], names: Sequence[tuple[str, str]]) -> Any:
    """Values under a condition and with the questions' own sound, (S, N) or (S, N, 2) each."""
    ours, theirs = [], []
    for seed in seeds:
        here = told[seed]["tasks"]
        ours.append(np.concatenate([as_array(here[name]["values"]) for name, _ in names]))
        theirs.append(np.concatenate([grid.values(arm, seed, [task])[here[name]["numbers"]] for name, task in names]))
    return np.stack(ours), np.stack(theirs)


def rates(grid: Grid) -> list[str]:
    """Learning rates that were tried with one seed, as factors of the recipes' own, and which was chosen."""
    rows, taken = [], []
    for family, told in grid.rates.items():
        taken += [family] if told.get("taken") else []
        for row in told["tried"]:
            chosen = "chosen" if row["factor"] == told["factor"] else ""
            if "diverged" in row:
                rows.append((family, f"{row['factor']:g}", "diverged", "", "", ""))
                continue
            loss = row["loss"]["held_out"]
            right, num = row["held_out"]["right"], str(row["held_out"]["num"])
            rows.append((family, f"{row['factor']:g}", percent(right), num, "" if loss is None else f"{loss:.3f}", chosen))
    others = f" Taken from another lab's sweep: {', '.join(taken)}." if taken else ""
    note = "One seed each, by questions that count in no score; most right answers choose, of equal ones the lower held-out loss."
    return [note + others, table(("family", "of the recipe's rates", "right, %", "n", "held-out loss", ""), rows)]
