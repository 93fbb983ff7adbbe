"""OUT/report/report.md with its pictures, and the part between the markers of docs/lab.md, from result files alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.lab.analysis import MARGIN, Difference, Grid, as_array, costs, paired, read_grid
from benchmarks.lab.pictures import draw
from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.training.report import table

BEGIN, END = "<!-- lab: begin -->", "<!-- lab: end -->"
CLAIMS = (
    ("LAL is as good as PLITS on general sound", "lal", "plits", "general sound", "non_inferior"),
    ("PAL (16 learned) is as good as PLITS on speech", "pal", "plits", "speech", "non_inferior"),
    ("PAL (16 learned) is as good as PLITS on order", "pal", "plits", "order", "non_inferior"),
    ("PAL (25 in time order) is as good as PLITS on speech", "pal-ordered", "plits", "speech", "non_inferior"),
    ("PAL (25 in time order) is as good as PLITS on order", "pal-ordered", "plits", "order", "non_inferior"),
    ("PAL (16 learned) is better than LAL on speech", "pal", "lal", "speech", "better"),
    ("LAL needs no training of the FFN on general sound", "lal-frozen-ffn", "lal", "general sound", "non_inferior"),
    ("PAL (25 in time order) is better than its 25 tokens alone on speech", "pal-ordered", "plits-pooled", "speech", "better"),
)
"""Claim, first arm, second arm, group of tasks, and what is to be shown of their difference."""
_METHOD = (
    "Differences are paired: the same items and seeds (a seed fixes initial weights and the order of the data in every arm). The 95% "
    "intervals are percentile bootstraps, 2,000 resamples, that draw recordings (a scene of several sounds is its own) and seeds; the "
    "spread of the drawn seeds is stretched by sqrt(S/(S-1)) and Student's quantile, since few seeds spread too little. "
    f"Non-inferior at {100 * MARGIN:g} points: *holds* where the whole interval is above -{100 * MARGIN:g} points, *does not hold* "
    "where it is below, else *undecided*. Many differences are shown and none is corrected for their number."
)


def write_report(out: Path, page: Path | None = None) -> Path:
    """Write the report of what is there.

    Args:
        out: OUT, or a packed copy.
        page: markdown with the two markers; what stands between them is replaced, and the pictures go beside it.

    Returns:
        The file that was written.

    Raises:
        PalError: there are no results, or the page lacks the markers.
    """
    text = None if page is None else _page(page)
    grid = read_grid(out)
    folder = out / "report" if page is None else page.parent
    folder.mkdir(exist_ok=True)
    pictures = draw(grid, folder)
    content = "\n\n".join(blocks(grid, pictures))
    if page is None or text is None:
        write_text(folder / "report.md", f"# The lab\n\n{content}\n")
        return folder / "report.md"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(page, f"{before}{BEGIN}\n{content}\n{END}{after}")
    return page


def _page(page: Path) -> str:
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise PalError(f"--page {page}: put the lines `{BEGIN}` and `{END}` where the report is to stand, each once")
    return text


def blocks(grid: Grid, pictures: Sequence[str]) -> list[str]:
    """The report in paragraphs and tables."""
    found = [_origin(grid)]
    missing = grid.missing()
    if missing:
        found.append("**Not all is there.** No result of: " + "; ".join(missing) + ".")
    found += ["### Scores", "Mean over seeds, lowest to highest in brackets. Speech and captions: errors over words, less is better."]
    found += [_scores(grid, grid.arms()), "### Claims", _METHOD, _claims(grid), "### Differences from PLITS", _differences(grid)]
    found += ["### Cost of the same runs", _cost_note(grid), _costs(grid, grid.arms())]
    found += [f"![{Path(name).stem}]({name})" for name in pictures]
    found += ["### Digit strings", _slices(grid), "### Under other conditions", *_robust(grid)]
    if grid.arms(ablations=True):
        found += ["### Ablations, ONE SEED each", "One seed: the order of close numbers means nothing."]
        found += [_scores(grid, grid.arms(ablations=True)), _costs(grid, grid.arms(ablations=True))]
    return found


def _origin(grid: Grid) -> str:
    told = next(iter(grid.results.values()))
    commits = sorted({(item["commit"] or {}).get("commit") or "not known" for item in grid.results.values()})
    versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("python", "torch", "transformers"))
    asked = ", ".join(f"{name} {len(task['ids'])}" for name, task in grid.index["tasks"].items())
    device = told["machine"]["device"]
    jobs = sorted({item["cost"]["jobs"] for item in grid.results.values()})
    return (
        f"{len(grid.results)} runs on {device['name']} ({device['type']}), {' or '.join(map(str, jobs))} at once; {versions}; "
        f"commit {', '.join(commits)}. Questions by task: {asked}; `{grid.index['hash']}`."
    )


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{percent(values[0])} (one seed)"
    return f"{percent(mean(values))} ({percent(min(values))} to {percent(max(values))})"


def _scores(grid: Grid, arms: Sequence[str]) -> str:
    groups = grid.groups()
    rows = []
    for arm in arms:
        seeds = grid.seeds(arm)
        cells = [_spread([grid.score(arm, seed, tasks) for seed in seeds]) for tasks in groups.values()]
        rows.append((arm, str(len(seeds)), *cells))
    guesses = [[grid.index["tasks"][name]["best_guess"] for name in tasks] for tasks in groups.values()]
    cells = ["" if None in guess else percent(float(np.mean(guess))) for guess in guesses]
    rows.append(("best constant answer", "", *cells))
    return table(("arm", "seeds", *(f"{group}, %" for group in groups)), rows)


def _interval(found: Difference) -> str:
    return f"{100 * found.interval.low:+.1f} to {100 * found.interval.high:+.1f}"


def _claims(grid: Grid) -> str:
    rows = []
    for claim, first, second, group, what in CLAIMS:
        tasks = grid.groups().get(group)
        found = None if tasks is None else grid.difference(first, second, tasks)
        if found is None:
            rows.append((claim, f"{first} - {second}", group, "", "", "", "no pair of runs yet"))
            continue
        seeds = f"{len(found.seeds)}" if len(found.seeds) > 1 else "ONE"
        shown = f"{100 * found.value:+.1f}"
        rows.append((claim, f"{first} - {second}", group, seeds, shown, _interval(found), getattr(found, what)))
    return table(("claim", "difference", "on", "seeds", "points", "95% interval", "verdict"), rows)


def _differences(grid: Grid) -> str:
    groups = grid.groups()
    rows = []
    for arm in (*grid.arms(), *grid.arms(ablations=True)):
        if arm == "plits":
            continue
        found = [grid.difference(arm, "plits", tasks) for tasks in groups.values()]
        cells = ["" if item is None else f"{100 * item.value:+.1f} ({_interval(item)})" for item in found]
        num = max((len(item.seeds) for item in found if item is not None), default=0)
        rows.append((arm, "ONE" if num == 1 else str(num), *cells))
    return table(("arm minus plits, points", "seeds", *groups), rows)


def _cost_note(grid: Grid) -> str:
    jobs = {item["cost"]["jobs"] for item in grid.results.values()}
    if jobs == {1}:
        return "One run at a time. Times are of training steps, without evaluations."
    return (
        "Several runs shared the machine, so a step's time says how arms compare under that load and not how fast one is alone; "
        "peak memory is each process's own."
    )


def _costs(grid: Grid, arms: Sequence[str]) -> str:
    base = costs(grid, "plits") if "plits" in grid.arms() else None
    rows = []
    for arm in arms:
        own = costs(grid, arm)
        memory = "not told" if own["peak_bytes"] is None else f"{own['peak_bytes'] / 2**20:,.0f}"
        ratios = [_ratio(own[key], None if base is None else base[key]) for key in ("peak_bytes", "median")]
        assert own["median"] is not None
        assert own["p10"] is not None
        assert own["p90"] is not None
        step = f"{1e3 * own['median']:.1f} ({1e3 * own['p10']:.1f} to {1e3 * own['p90']:.1f})"
        rows.append((arm, f"{own['trainable']:,}", f"{own['total']:,}", memory, ratios[0], step, ratios[1]))
    names = ("arm", "trainable", "parameters", "peak MiB", "of plits", "ms a step, median (p10 to p90)", "of plits")
    return table(names, rows)


def _ratio(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.2f}"


def _slices(grid: Grid) -> str:
    rows = []
    for arm in grid.arms():
        for task in grid.groups().get("speech", []):
            found = [grid.results[arm, seed]["tasks"][task]["slices"] for seed in grid.seeds(arm)]
            rows += [(arm, task, name, str(told["num"]), _spread([item[name]["score"] for item in found]))
                     for name, told in found[0].items()]  # fmt: skip
    return table(("arm", "task", "strings", "n", "word error rate, %"), rows) if rows else "No digit strings were asked."


def _robust(grid: Grid) -> list[str]:
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
        sources = [grid.index["tasks"][task]["sources"][number] for name, task in names for number in told[seeds[0]]["tasks"][name]["numbers"]]
        found = paired(ours, theirs, sources, seeds, grid.in_errors([names[0][1]]))
        rows.append((condition, group, str(found.num_items), f"{100 * found.value:+.1f}", _interval(found)))
    skipped = {f"{name}: {reason}" for item in told.values() for name, reason in item["skipped"].items()}
    lines = [f"Arm {arm}, {len(seeds)} seeds, a part of the same questions; the change against their own sound."]
    lines.append(table(("condition", "on", "items", "change, points", "95% interval"), rows))
    return lines + [f"Not made: {line}." for line in sorted(skipped)]


def _both(grid: Grid, told: dict[int, dict[str, Any]], arm: str, seeds: Sequence[int], names: Sequence[tuple[str, str]]) -> Any:
    """Values under a condition and with the questions' own sound, (S, N) or (S, N, 2) each."""
    ours, theirs = [], []
    for seed in seeds:
        tasks = told[seed]["tasks"]
        ours.append(np.concatenate([as_array(tasks[name]["values"]) for name, _ in names]))
        theirs.append(np.concatenate([grid.values(arm, seed, [task])[tasks[name]["numbers"]] for name, task in names]))
    return np.stack(ours), np.stack(theirs)
