"""The steps of the lab in order: world, tests, language model, encoders, frames, learning rates, arms, the best one elsewhere."""

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lab import collecting, questions, robustness
from benchmarks.lab.recipes import FACTORS, LabRecipe, Shelf, written
from benchmarks.lab.steps import Step
from pal_audio.data import MixConfig, read_catalogue, read_mix
from pal_audio.data.manifest import write_text
from pal_audio.data.mixing.catalogue import Catalogue
from pal_audio.errors import PalError

SEEDS = (0, 1, 2)
TINY_ARMS = ["plits", "lal"]
SETTINGS = "lab.json"
TINY_WORLD = {"num_train": 40, "num_test": 64}


@dataclass(frozen=True)
class Flow:
    """Which steps there are.

    Attributes:
        root: folder with the recordings.
        out: where all goes.
        shelf: the recipes.
        arms: names, or all.
        seeds: of each arm.
        factors: of the recipes' learning rates, tried with the first seed.
        jobs: steps at once, noted beside each run's time.
        device: of `pal encode` and `pal eval`; training takes the accelerator where there is one.
        dtype: of cached frames.
        batch_size: questions asked together.
        workers: processes that compose scenes.
    """

    root: Path
    out: Path
    shelf: Shelf
    arms: list[str] | None = None
    seeds: tuple[int, ...] = SEEDS
    factors: tuple[float, ...] = FACTORS
    jobs: int = 1
    device: str = "auto"
    dtype: str = "bfloat16"
    batch_size: int = 64
    workers: int = 2

    @cached_property
    def chosen(self) -> list[LabRecipe]:
        return self.shelf.arms(self.arms)

    @cached_property
    def others(self) -> list[LabRecipe]:
        """Ablations, of one seed; a choice of arms leaves them out."""
        return self.shelf.ablations() if self.arms is None else []

    def check(self) -> None:
        """Refuse what cannot work before anything is begun, and an OUT that was begun with other settings.

        Raises:
            PalError: as said.
        """
        if not self.root.is_dir():
            raise PalError(f"--root {self.root}: no such folder; it holds the recordings that the world's recipe names")
        self.shelf.recipe("world")
        if not self.chosen:
            raise PalError(f"{self.shelf.folder / 'arms'}: no recipes there")
        if self.out.exists() and not self.out.is_dir():
            raise PalError(f"--out {self.out} is a file; give a folder")
        fixed = {"tiny": self.shelf.tiny, "factors": list(self.factors)}
        file = self.out / SETTINGS
        if file.is_file():
            there = questions.read_json(file)["fixed"]
            if there != fixed:
                keys = ", ".join(key for key in fixed if there.get(key) != fixed[key])
                raise PalError(f"{self.out} was begun with other settings ({keys}); choose another folder, or the same settings")
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise PalError(f"{self.out} is not empty and holds no lab ({SETTINGS} is missing); choose another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        last = {"arms": self.arms, "seeds": list(self.seeds), "jobs": self.jobs}
        last |= {"root": str(self.root.resolve()), "recipes": str(self.shelf.folder.resolve())}
        write_text(file, json.dumps({"fixed": fixed, "last": last}) + "\n")

    def steps(self) -> list[Step]:
        """All steps, each behind what it needs."""
        steps = [self.mixed("world"), self._tests()]
        bases = dict.fromkeys(name for recipe in (*self.chosen, *self.others) for name in recipe.bases)
        steps += [self._base(name) for name in bases]
        kinds = {frames_name(recipe): recipe for recipe in reversed((*self.chosen, *self.others)) if recipe.encoders}
        steps += [self._frames(name, recipe) for name, recipe in sorted(kinds.items())]
        families = list(dict.fromkeys(recipe.family for recipe in (*self.chosen, *self.others)))
        for family in families:
            tried = [self._tried(family, factor) for factor in self.factors]
            steps += [*tried, self._rate(family, tried)]
        scored = [self._arm(recipe, seed) for seed in self.seeds for recipe in self.chosen]
        steps += [*scored, self._best(scored), self._conditions()]
        steps += [self._robust(seed) for seed in self.seeds]
        return steps + [self._arm(recipe, self.seeds[0], ablation=True) for recipe in self.others]

    def mark(self, name: str) -> Path:
        return self.out / "marks" / f"{name}.json"

    def run_folder(self, name: str, factor: float, seed: int) -> Path:
        return self.out / "runs" / f"{name}-x{factor:g}-{seed}"

    def mixed(self, name: str) -> Step:
        """Scenes composed by the recipe of that name."""
        changes: dict[str, Any] = {"data.root": str(self.root.resolve())}
        changes |= {f"data.{key}": value for key, value in TINY_WORLD.items()} if self.shelf.tiny else {}
        options = ["--workers", str(self.workers), *written(changes)]
        command = ["data", "mix", str(self.shelf.recipe(name).path), str(self.out / name), *options]
        made = (self.out / name / "mix.json",)
        return Step(name, "world", self.mark(name), products=made, commands=lambda: [command])

    def catalogue(self) -> Catalogue:
        """The recordings of the world."""
        config = read_mix(self.out / "world").config
        assert isinstance(config, MixConfig)
        return read_catalogue(config)

    def _tests(self) -> Step:
        def finish() -> dict[str, Any]:
            index = questions.write_tests(self.out / "world", self.out / "tests", [self.root.resolve()])
            (self.out / "results").mkdir(exist_ok=True)
            write_text(self.out / "results" / "index.json", json.dumps(index) + "\n")
            return {"hash": index["hash"]}

        made = (self.out / "tests" / "index.json", self.out / "results" / "index.json")
        return Step("tests", "tests", self.mark("tests"), ("world",), products=made, finish=finish)

    def _base(self, name: str) -> Step:
        """The language model, or an encoder."""
        recipe = self.shelf.recipe(name.removeprefix("lab-"))
        folder = self.out / "runs" / name
        command = ["train", str(recipe.path), *recipe.settings(), "--out", str(folder), "--resume"]
        made = folder / ("encoders" if recipe.name.startswith("encoder-") else "llm")
        return Step(name, name, self.mark(name), ("world",), products=(made,), commands=lambda: [command])

    def _frames(self, name: str, recipe: LabRecipe) -> Step:
        manifests = [str(self.out / "world" / f"{split}.jsonl") for split in ("train", "test")]
        manifests.append(str(self.out / "tests" / "clips.jsonl"))
        roots = ["--root", str(self.out.resolve()), "--root", str(self.root.resolve())]
        options = ["--recipe", str(recipe.path), *roots, "--dtype", self.dtype, "--device", self.device]
        folder = self.out / "frames" / name
        command = ["encode", *manifests, str(folder), *options]
        needs = ("tests", *recipe.bases)
        made = (folder / "cache.json",)
        return Step(f"frames-{name}", "frames", self.mark(f"frames-{name}"), needs, products=made, commands=lambda: [command])

    def _train(self, recipe: LabRecipe, factor: float, seed: int) -> list[list[str]]:
        """The command that trains an arm; none where that is done."""
        folder = self.run_folder(recipe.name, factor, seed)
        if (folder / "finished.json").is_file():
            return []
        frames = self.out / "frames" / frames_name(recipe) if recipe.encoders else None
        roots = [self.out.resolve(), self.root.resolve()]
        settings = recipe.arm_settings(seed, factor, frames, roots, self.out / "tests" / "curve.jsonl")
        return [["train", str(recipe.path), *settings, "--out", str(folder), "--resume"]]

    def _inputs(self, recipe: LabRecipe) -> tuple[str, ...]:
        return ("tests", *recipe.bases, *([f"frames-{frames_name(recipe)}"] if recipe.encoders else []))

    def _tried(self, family: str, factor: float) -> Step:
        recipe, seed = self.shelf.recipe(f"arms/{family}"), self.seeds[0]
        folder = self.run_folder(family, factor, seed)

        def finish() -> dict[str, Any]:
            told = collecting.described_run(folder, self.jobs)
            slim(folder)
            return {"factor": factor, "held_out": told["held_out"], "loss": told["loss"]}

        name = f"{family}-x{factor:g}"
        mark = self.out / "sweep" / f"{name}.json"
        return Step(name, "train", mark, self._inputs(recipe), commands=partial(self._train, recipe, factor, seed), finish=finish)

    def _rate(self, family: str, tried: list[Step]) -> Step:
        def finish() -> dict[str, Any]:
            found = [questions.read_json(step.mark) for step in tried if step.done]
            if not found:
                raise PalError(f"no run of {family} has finished, so its learning rate cannot be chosen")
            best = max(found, key=lambda row: (row["held_out"]["right"], -(row["loss"]["held_out"] or 0.0)))
            return {"factor": best["factor"], "tried": found}

        names = tuple(step.name for step in tried)
        return Step(f"rate-{family}", "rate", self.out / "rates" / f"{family}.json", follows=names, finish=finish)

    def factor_of(self, recipe: LabRecipe) -> float:
        """The chosen factor of an arm's learning rates."""
        file = self.out / "rates" / f"{recipe.family}.json"
        return float(questions.read_json(file)["factor"])

    def _arm(self, recipe: LabRecipe, seed: int, ablation: bool = False) -> Step:
        name = f"{recipe.name}-{seed}"

        def commands() -> list[list[str]]:
            factor = self.factor_of(recipe)
            folder = self.run_folder(recipe.name, factor, seed)
            frames = ["--frame-cache", str(self.out / "frames" / frames_name(recipe))] if recipe.encoders else []
            return [*self._train(recipe, factor, seed), self._eval(folder, self.out / "evals" / name, frames)]

        def finish() -> dict[str, Any]:
            folder = self.run_folder(recipe.name, self.factor_of(recipe), seed)
            index = questions.read_index(self.out)
            told = {"format": collecting.FORMAT, "arm": recipe.name, "family": recipe.family, "seed": seed, "ablation": ablation}
            told |= {"factor": self.factor_of(recipe), **collecting.described_run(folder, self.jobs)}
            told |= {"tests_hash": index["hash"], "tasks": collecting.task_scores(self.out / "evals" / name, index)}
            slim(folder)
            return told

        needs = (*self._inputs(recipe), f"rate-{recipe.family}")
        mark = self.out / "results" / f"{name}.json"
        return Step(name, "arm", mark, needs, commands=commands, finish=finish)

    def _eval(self, run: Path, out: Path, options: list[str], tests: str = "") -> list[str]:
        places = ["--root", str(self.out.resolve()), "--root", str(self.root.resolve()), "--device", self.device]
        asked = [*questions.tests_of(self.out, tests), *places, "--batch-size", str(self.batch_size), "--resume"]
        return ["eval", str(run), str(out), *asked, *options]

    def _best(self, scored: list[Step]) -> Step:
        """The arm of the best mean over tasks, errors counted from 1 down, and over seeds."""

        def finish() -> dict[str, Any]:
            found: dict[str, list[float]] = {}
            for step in scored:
                if step.done:
                    told = questions.read_json(step.mark)
                    found.setdefault(told["arm"], []).append(collecting.mean_score(told["tasks"]))
            means = {arm: float(np.mean(values)) for arm, values in found.items() if len(values) == len(self.seeds)}
            if not means:
                raise PalError("no arm has finished with all its seeds, so there is no best one")
            return {"arm": max(means, key=lambda arm: means[arm]), "means": means}

        names = tuple(step.name for step in scored)
        return Step("best", "best", self.mark("best"), follows=names, finish=finish)

    def best(self) -> LabRecipe:
        """The recipe of the best arm."""
        file = self.mark("best")
        if not file.is_file():
            raise PalError(f"{self.out}: the best arm is not known yet; end the grid by `python -m benchmarks.lab run`")
        return self.shelf.recipe(f"arms/{json.loads(file.read_text(encoding='utf-8'))['arm']}")

    def _conditions(self) -> Step:
        folder = self.out / "robust" / "tests"

        def finish() -> dict[str, Any]:
            return {"skipped": robustness.write_conditions(self.out / "tests", folder, [self.out.resolve(), self.root.resolve()])}

        made = (folder / "index.json",)
        return Step("conditions", "conditions", self.mark("conditions"), ("tests",), products=made, finish=finish)

    def _robust(self, seed: int) -> Step:
        def commands() -> list[list[str]]:
            recipe = self.best()
            run = self.run_folder(recipe.name, self.factor_of(recipe), seed)
            return [self._eval(run, self.out / "evals" / f"robust-{seed}", [], "robust/tests")]

        def finish() -> dict[str, Any]:
            index = questions.read_json(self.out / "robust" / "tests" / "index.json")
            skipped = questions.read_json(self.mark("conditions"))["skipped"]
            tasks = collecting.task_scores(self.out / "evals" / f"robust-{seed}", index)
            for name, task in tasks.items():
                task["numbers"] = index["tasks"][name]["numbers"]
            return {"arm": self.best().name, "seed": seed, "skipped": skipped, "tasks": tasks}

        mark = self.out / "robust" / f"{seed}.json"
        return Step(f"robust-{seed}", "robust", mark, ("conditions", "best"), commands=commands, finish=finish)


def flow_in(out: Path) -> Flow:
    """The flow that was last run in a folder.

    Raises:
        PalError: there is none.
    """
    told = questions.read_json(out / SETTINGS)
    fixed, last = told["fixed"], told["last"]
    shelf = Shelf(Path(last["recipes"]), fixed["tiny"])
    return Flow(Path(last["root"]), out, shelf, last["arms"], tuple(last["seeds"]), tuple(fixed["factors"]), last["jobs"])


def frames_name(recipe: LabRecipe) -> str:
    return "+".join(recipe.encoders)


def slim(run: Path) -> None:
    """Give back the disk of a finished run's checkpoints."""
    for folder in run.glob("checkpoints-*"):
        shutil.rmtree(folder)


def cores() -> int:
    return os.cpu_count() or 1
