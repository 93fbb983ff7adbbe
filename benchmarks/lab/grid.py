"""The steps of the lab in order: world, tests, language model, encoders, frames, learning rates, arms, other sound."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.lab import collecting, questions, robustness
from benchmarks.lab.bundle import MOST_PARAMETERS
from benchmarks.lab.elsewhere.asking import elsewhere_steps
from benchmarks.lab.flow import Flow, choice_file, trial_file
from benchmarks.lab.questions import read_json
from benchmarks.lab.recipes import ENCODER, LONG_FIRST, LabRecipe, written
from benchmarks.lab.steps import CommandError, Step

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError

REFUSED = 2  # the status of `pal` after an error that it names
DIVERGED = "lower the learning rate"  # how `pal train` ends a run whose loss or gradients are no numbers
_PACE_QUESTIONS = 8  # a run for its time is asked next to nothing at its end


def grid_steps(flow: Flow) -> list[Step]:
    """All steps, each behind what it needs."""
    recipes = flow.trained
    bases = _bases(flow, recipes)
    worlds = dict.fromkeys(["world", *(world for base in bases for world in base.needs)])
    steps = [*(flow.mixed(world) for world in worlds), _tests(flow), *bases]
    users = Counter(flow.frames(recipe) for recipe in recipes if recipe.encoders)
    hearing = {flow.frames(recipe): recipe for recipe in reversed(recipes)}
    steps += [_frames(flow, hearing[folder], 1 / len(users)) for folder, _ in users.most_common()]
    there = {recipe.name for recipe in recipes}
    for family in sorted({recipe.family for recipe in recipes}, key=_length):
        tried = [_tried(flow, family, factor) for factor in flow.factors if family in there]  # else its rate is chosen
        steps += [*tried, _rate(flow, family, tried)]
    long_first = sorted(flow.chosen, key=lambda recipe: _length(recipe.name))
    steps += [_arm(flow, recipe, seed) for seed in flow.seeds for recipe in long_first]
    judged = {f"{recipe.name}-{seed}" for recipe in flow.judged for seed in flow.seeds}
    steps += [
        _best(flow, [step for step in steps if step.name in judged]),
        _conditions(flow),
        *(_robust(flow, seed) for seed in flow.seeds),
    ]
    steps += elsewhere_steps(flow)
    steps += [_pace(flow, recipe) for recipe in flow.chosen if flow.pace_steps]
    return steps + [_arm(flow, recipe, flow.seeds[0], ablation=True) for recipe in flow.others]


def _length(arm: str) -> int:
    """For an order in which the longest are begun first."""
    return LONG_FIRST.index(arm) if arm in LONG_FIRST else len(LONG_FIRST)


def _tests(flow: Flow) -> Step:
    def finish() -> dict[str, Any]:
        index = questions.write_tests(flow.out / "world", flow.out / "tests", flow.roots, flow.most_questions)
        (flow.out / "results").mkdir(exist_ok=True)
        write_text(flow.out / "results" / "index.json", json.dumps(index) + "\n")
        return {"hash": index["hash"]}

    made = (flow.out / "tests" / "index.json", flow.out / "results" / "index.json")
    return Step("tests", "tests", flow.mark("tests"), ("world",), products=made, finish=finish, on_gpu=False)


def _bases(flow: Flow, recipes: list[LabRecipe]) -> list[Step]:
    """Language model and encoders. The encoder that most arms hear by comes first, with half of the cores to read sound."""
    users = Counter(name for recipe in recipes for name in recipe.bases)
    encoders = [name for name, _ in users.most_common() if name.startswith(ENCODER)]
    first, others = encoders[:1], encoders[1:]
    steps = [_base(flow, name, flow.readers(0.5 if others else 1)) for name in first]
    steps += [_base(flow, name, None) for name in users if name not in encoders]
    return steps + [_base(flow, name, flow.readers(0.5 / len(others))) for name in others]


def _base(flow: Flow, name: str, workers: int | None) -> Step:
    """The language model, or an encoder."""
    recipe = flow.shelf.recipe(name.removeprefix("lab-"))
    folder = flow.out / "runs" / name
    settings = [*recipe.settings(), *([] if workers is None else written({"workers": workers}))]
    command = ["train", str(recipe.path), *settings, "--out", str(folder), "--resume"]
    made = (folder / recipe.product,)
    step = Step(name, name, flow.mark(name), tuple(recipe.worlds), products=made, commands=lambda: [command])
    return replace(step, needs=()) if step.done else step  # nothing is composed for what is there


def _frames(flow: Flow, recipe: LabRecipe, share: float) -> Step:
    manifests = [flow.out / "world" / "train.jsonl", flow.out / "world" / "test.jsonl", flow.out / "tests" / "clips.jsonl"]
    name, needs = _frames_step(flow, recipe), ("tests", *(base for base in recipe.bases if base.startswith(ENCODER)))
    return flow.encoding(name, recipe.path, manifests, flow.frames(recipe), needs, share)


def _frames_step(flow: Flow, recipe: LabRecipe) -> str:
    return f"frames-{flow.frames(recipe).name}"


def _inputs(flow: Flow, recipe: LabRecipe) -> tuple[str, ...]:
    return ("tests", *recipe.bases, *([_frames_step(flow, recipe)] if recipe.encoders else []))


def _tried(flow: Flow, family: str, factor: float) -> Step:
    """One learning rate of a family's arm; the run of the best one is that arm's first seed."""
    recipe, seed = flow.shelf.recipe(f"arms/{family}"), flow.seeds[0]
    folder = flow.run_folder(family, factor, seed)

    def finish() -> dict[str, Any]:
        told = collecting.described_run(folder, flow.jobs)
        _slim(folder)
        return {"factor": factor, "held_out": told["held_out"], "loss": told["loss"]}

    def excuse(error: CommandError) -> dict[str, Any] | None:
        """A rate too high for the arm is what was to be found out; the grid goes on with the others."""
        told = [line for line in error.lines if line.startswith("pal: error:") and DIVERGED in line]
        if error.status != REFUSED or not told:
            return None
        _slim(folder)
        return {"factor": factor, "diverged": told[-1]}

    mark, commands = flow.out / trial_file(family, factor), partial(flow.training, recipe, factor, seed)
    return Step(mark.stem, "train", mark, _inputs(flow, recipe), commands=commands, finish=finish, excuse=excuse)


def _rate(flow: Flow, family: str, tried: list[Step]) -> Step:
    """The rate of most right answers to the questions of the curve; of equal ones, of the lowest held-out loss."""

    def finish() -> dict[str, Any]:
        found = [read_json(step.mark) for step in tried if step.done]
        whole = [row for row in found if "diverged" not in row]
        if found and not whole:
            rates = ", ".join(f"{row['factor']:g}" for row in found)
            raise PalError(f"{family} diverged at every factor of its rates ({rates}); give lower --factors and another OUT")
        if not whole:
            raise PalError(f"no run of {family} has finished, so its learning rate cannot be chosen")
        best = max(whole, key=lambda row: (row["held_out"]["right"], -(row["loss"]["held_out"] or 0.0)))
        return {"factor": best["factor"], "tried": found}

    names = tuple(step.name for step in tried)
    mark = flow.out / choice_file(family)
    return Step(f"rate-{family}", "rate", mark, follows=names, finish=finish, on_gpu=False)


def _arm(flow: Flow, recipe: LabRecipe, seed: int, ablation: bool = False) -> Step:
    name = f"{recipe.name}-{seed}"
    evaluation = flow.out / "evals" / name

    def commands() -> list[list[str]]:
        factor = flow.factor_of(recipe)
        run = flow.run_folder(recipe.name, factor, seed)
        asking = flow.evaluating(run, evaluation, flow.out / "tests", flow.frames(recipe) if recipe.encoders else None)
        return [*flow.training(recipe, factor, seed), asking]

    def finish() -> dict[str, Any]:
        factor = flow.factor_of(recipe)
        run, index = flow.run_folder(recipe.name, factor, seed), questions.read_index(flow.out)
        told: dict[str, Any] = {"format": collecting.FORMAT, "arm": recipe.name, "family": recipe.family, "seed": seed}
        told |= {"ablation": ablation, "factor": factor, **collecting.described_run(run, flow.jobs)}
        told |= {"tests_hash": index["hash"], "tasks": collecting.task_scores(evaluation, index)}
        _slim(run)
        return told

    needs = (*_inputs(flow, recipe), f"rate-{recipe.family}")
    return Step(name, "arm", flow.out / "results" / f"{name}.json", needs, commands=commands, finish=finish)


def _best(flow: Flow, scored: list[Step]) -> Step:
    """The arm of the best mean over tasks (errors: 1 less them) and seeds, of those that are small enough to be bundled."""

    def finish() -> dict[str, Any]:
        found: dict[str, list[float]] = {}
        sizes: dict[str, int] = {}
        for step in scored:
            if step.done:
                told = read_json(step.mark)
                found.setdefault(told["arm"], []).append(collecting.mean_score(told["tasks"]))
                sizes[told["arm"]] = told["parameters"]["total"]
        means = {arm: float(np.mean(values)) for arm, values in found.items() if len(values) == len(flow.seeds)}
        if not means:
            raise PalError("no arm has finished with all its seeds, so there is no best one")
        too_large = sorted(arm for arm in means if sizes[arm] > MOST_PARAMETERS)
        fitting = [arm for arm in means if arm not in too_large]
        if not fitting:
            raise PalError(f"every arm has more than {MOST_PARAMETERS:,} parameters, so none can be bundled; take a smaller LM")
        return {"arm": max(fitting, key=lambda arm: means[arm]), "means": means, "too_large": too_large}

    follows = tuple(step.name for step in scored)
    return Step("best", "best", flow.mark("best"), follows=follows, finish=finish, on_gpu=False)


def _conditions(flow: Flow) -> Step:
    folder = flow.out / "robust" / "tests"

    def finish() -> dict[str, Any]:
        workers = min(flow.workers, flow.readers(0.25) or flow.workers)  # encoders are learning beside it
        return {"skipped": robustness.write_conditions(flow.out / "tests", folder, flow.roots, workers)}

    mark, made = flow.mark("conditions"), (folder / "index.json",)
    return Step("conditions", "conditions", mark, ("tests",), products=made, finish=finish, on_gpu=False)


def _robust(flow: Flow, seed: int) -> Step:
    tests, evaluation = flow.out / "robust" / "tests", flow.out / "evals" / f"robust-{seed}"

    def commands() -> list[list[str]]:
        recipe = flow.best()
        run = flow.run_folder(recipe.name, flow.factor_of(recipe), seed)
        return [flow.evaluating(run, evaluation, tests, None, 1 / len(flow.seeds))]

    def finish() -> dict[str, Any]:
        index = read_json(tests / "index.json")
        tasks = collecting.task_scores(evaluation, index)
        for name, task in tasks.items():
            task["numbers"] = index["tasks"][name]["numbers"]
        skipped = read_json(flow.mark("conditions"))["skipped"]
        return {"arm": flow.best().name, "seed": seed, "skipped": skipped, "tasks": tasks}

    mark = flow.out / "robust" / f"{seed}.json"
    return Step(f"robust-{seed}", "robust", mark, ("conditions", "best"), commands=commands, finish=finish)


def _pace(flow: Flow, recipe: LabRecipe) -> Step:
    """A short run of an arm that has the machine to itself."""
    folder = flow.out / "runs" / f"pace-{recipe.name}"

    def commands() -> list[list[str]]:
        held_out = {"path": str(flow.out / "tests" / "curve.jsonl"), "first": _PACE_QUESTIONS}
        changes: dict[str, Any] = {"data.test": [held_out]}
        for number in range(len(recipe.content["stages"])):
            place = f"stages.{number}"
            changes |= {f"{place}.epochs": None, f"{place}.steps": flow.pace_steps, f"{place}.eval_every": None}
        settings = [*flow.arm_settings(recipe, flow.factor_of(recipe), flow.seeds[0]), *written(changes)]
        return [["train", str(recipe.path), *settings, "--out", str(folder), "--overwrite"]]

    def finish() -> dict[str, Any]:
        cost = collecting.described_run(folder, 1)["cost"]
        shutil.rmtree(folder)
        return {"arm": recipe.name, "cost": cost}

    needs, mark = (*_inputs(flow, recipe), f"rate-{recipe.family}"), flow.out / "pace" / f"{recipe.name}.json"
    return Step(f"pace-{recipe.name}", "pace", mark, needs, commands=commands, finish=finish, alone=True)


def _slim(run: Path) -> None:
    """Give back the disk of a finished run's checkpoints."""
    for folder in run.glob("checkpoints-*"):
        shutil.rmtree(folder)
