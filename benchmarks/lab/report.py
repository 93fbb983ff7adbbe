"""OUT/report/report.md with its pictures, and the part between the markers of docs/lab.md, from result files alone."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.lab import tables
from benchmarks.lab.analysis import MARGIN, Grid, read_grid
from benchmarks.lab.pictures import draw
from benchmarks.lab.recipes import PLITS

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError

BEGIN, END = "<!-- lab: begin -->", "<!-- lab: end -->"
_METHOD = (
    "Differences are paired: the same items and seeds (a seed fixes initial weights and the order of the data in every arm). The "
    "95% intervals are percentile bootstraps, 2,000 resamples, that draw recordings (a scene of several sounds is its own) and "
    "seeds; the spread of drawn seeds is stretched by sqrt(S/(S-1)) and Student's quantile, since few seeds spread too little. "
    f"Non-inferior at {100 * MARGIN:g} points: *holds* where the whole interval is above -{100 * MARGIN:g} points, *does not "
    "hold* where it is below, else *undecided*; *better* is the same about 0. Many differences are shown, none corrected for "
    "their number."
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
    arms, ablations, groups = grid.arms(), grid.arms(ablations=True), grid.groups()
    found = [_origin(grid)]
    if missing := grid.missing():
        found.append("**Not all is there.** No result of: " + "; ".join(missing) + ".")
    scale = "Mean over seeds, lowest to highest in brackets. Speech and captions: errors over words, less is better."
    found += ["### Scores", scale, tables.scores(grid, arms, groups), "By task, mean over seeds:", tables.tasks(grid)]
    found += ["### Claims", _METHOD, tables.claims(grid), f"### Differences from {grid.baseline() or PLITS}"]
    found += [tables.differences(grid), "### Cost of the same runs", tables.cost_note(grid), tables.costs(grid, arms)]
    found += [f"![{Path(name).stem}]({name})" for name in pictures]
    found += ["### Digit strings", tables.slices(grid), "### Under other conditions", *tables.robust(grid)]
    if grid.rates:
        found += ["### Learning rates", *tables.rates(grid)]
    if grid.elsewhere:
        found += ["### Sound from elsewhere, NO GOAL", *tables.elsewhere(grid)]
    if ablations:
        found += ["### Ablations, ONE SEED each", "One seed: the order of close numbers means nothing."]
        found += [tables.scores(grid, ablations, groups), tables.costs(grid, ablations)]
    return found


def _origin(grid: Grid) -> str:
    told = next(iter(grid.results.values()))
    commits = sorted({(item["commit"] or {}).get("commit") or "not known" for item in grid.results.values()})
    versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("python", "torch", "transformers"))
    asked = ", ".join(f"{name} {len(task['ids'])}" for name, task in grid.index["tasks"].items())
    jobs = sorted({item["cost"]["jobs"] for item in grid.results.values()})
    return (
        f"{len(grid.results)} runs on {_machines(grid)}, {' or '.join(map(str, jobs))} at once; {versions}; "
        f"commit {', '.join(commits)}. Questions by task: {asked}; `{grid.index['hash']}`."
    )


def _machines(grid: Grid) -> str:
    """What most runs were on, and what the others were, with their names."""
    runs: dict[str, list[str]] = {}
    for (arm, seed), told in grid.results.items():
        device = told["machine"]["device"]
        runs.setdefault(f"{device['name']} ({device['type']})", []).append(f"{arm}-{seed}")
    most, *others = sorted(runs, key=lambda device: -len(runs[device]))
    return " and ".join([most, *(f"{device} for {', '.join(runs[device])}" for device in others)])
