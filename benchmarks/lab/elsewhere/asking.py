"""The best arm is asked about sound from elsewhere, each seed by a step of its own."""

from pathlib import Path
from typing import Any

from benchmarks.lab import collecting
from benchmarks.lab.elsewhere.folder import check_answers, read_folder
from benchmarks.lab.flow import Flow
from benchmarks.lab.questions import read_json
from benchmarks.lab.steps import Step

from pal_audio.errors import PalError

_KEPT = ("kind", "metric", "group", "best_guess", "like")


def check(flow: Flow) -> None:
    """Refuse a folder that is none, or another than that which results are there of.

    Raises:
        PalError: as said.
    """
    if flow.elsewhere is None:
        return
    index = read_folder(flow.elsewhere)
    for path in (flow.out / "elsewhere").glob("*.json"):
        if read_json(path)["hash"] != index["hash"]:
            told = f"{path} is of other sound than {flow.elsewhere}"
            raise PalError(f"{told}; delete {path.parent} and {flow.out / 'evals'}/elsewhere-*, or give that folder again")


def elsewhere_steps(flow: Flow) -> list[Step]:
    """A step for each seed of the best arm; none where no such sound is given."""
    return [] if flow.elsewhere is None else [_asked(flow, flow.elsewhere, seed) for seed in flow.seeds]


def _asked(flow: Flow, folder: Path, seed: int) -> Step:
    name = f"elsewhere-{seed}"
    evaluation = flow.out / "evals" / name

    def commands() -> list[list[str]]:
        check_answers(folder, flow.labels())
        recipe = flow.best()
        run = flow.run_folder(recipe.name, flow.factor_of(recipe), seed)
        return [flow.evaluating(run, evaluation, folder, None, 1 / len(flow.seeds))]

    def finish() -> dict[str, Any]:
        index = read_folder(folder)
        tasks = collecting.task_scores(evaluation, index)
        for task, told in tasks.items():
            told |= {key: index["tasks"][task][key] for key in _KEPT}
        return {"arm": flow.best().name, "seed": seed, "hash": index["hash"], "made_by": index["made_by"], "tasks": tasks}

    return Step(name, "elsewhere", flow.out / "elsewhere" / f"{seed}.json", ("best",), commands=commands, finish=finish)
