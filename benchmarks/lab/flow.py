"""What a lab is: where it lies, its recipes, and the commands of `pal` that its steps are made of."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.lab.gpus import VISIBLE, visible_gpus
from benchmarks.lab.questions import options_of, read_json
from benchmarks.lab.recipes import FACTORS, LabRecipe, Shelf, written
from benchmarks.lab.steps import Step

from pal_audio.data import MixConfig, read_catalogue, read_mix
from pal_audio.data.cores import num_cores
from pal_audio.data.manifest import write_text
from pal_audio.data.mixing.catalogue import Catalogue
from pal_audio.errors import PalError

SEEDS = (0, 1, 2)
TINY_ARMS = ["plits", "lal"]
SETTINGS = "lab.json"
DEVICES = ("auto", "cpu", "cuda", "mps")
_MOST_READERS = 32  # 96 clips of 8 s take a core half a second, and the GPU some 20 ms
_LATER = {"wav": False}  # fixed settings that labs of before do not name
_TINY_WORLD = {"num_train": 40, "num_test": 64}


@dataclass(frozen=True)
class Flow:
    """A lab.

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
        most_questions: of a task of the tests.
        pace_steps: of a run of each arm that has the machine to itself, so that its time can be told; 0 = no such runs.
        most_gpus: that steps are spread over; None = all that can be seen.
        elsewhere: a folder of sound that the best arm is asked about too; see the package of that name.
        candidates: arms of these that the best one is chosen from, without waiting for the others; None = all.
        wav: compose scenes as WAV, whose samples are FLAC's: for an OUT in memory, and few cores to read with.
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
    batch_size: int = 128
    workers: int = 2
    most_questions: int = 600
    pace_steps: int = 0
    most_gpus: int | None = None
    elsewhere: Path | None = None
    candidates: list[str] | None = None
    wav: bool = False

    @cached_property
    def chosen(self) -> list[LabRecipe]:
        return self.shelf.arms(self.arms)

    @cached_property
    def others(self) -> list[LabRecipe]:
        """Ablations, of one seed; a choice of arms leaves them out."""
        return self.shelf.ablations() if self.arms is None else []

    @property
    def judged(self) -> list[LabRecipe]:
        """Arms that the best one is chosen from."""
        return [recipe for recipe in self.chosen if self.candidates is None or recipe.name in self.candidates]

    @property
    def may_be_best(self) -> list[LabRecipe]:
        """The best arm alone, once it is known."""
        return [self.best()] if self.mark("best").is_file() else self.judged

    @property
    def is_bundle_urgent(self) -> bool:
        """Whether the bundle is waited for as the arms are: where its candidates are named."""
        return self.candidates is not None

    @property
    def trained(self) -> list[LabRecipe]:
        """All of these, and arms whose learning rates are still to be tried for them."""
        recipes = [*self.chosen, *self.others]
        names = {recipe.name for recipe in recipes}
        families = sorted({recipe.family for recipe in recipes} - names)
        return recipes + [self.shelf.arm(family) for family in families if not (self.out / choice_file(family)).is_file()]

    @cached_property
    def gpus(self) -> list[str]:
        """Names of the GPUs that steps are spread over.

        Raises:
            PalError: there are not so many as asked for, or none where CUDA was.
        """
        found = [] if self.device in ("cpu", "mps") else visible_gpus(self.most_gpus)
        if self.device == "cuda" and not found:
            raise PalError("--device cuda: no GPU can be seen here; give --device cpu to do without")
        return found

    @property
    def roots(self) -> list[Path]:
        """Folders that sound lies in."""
        return [self.out.resolve(), self.root.resolve()]

    def check(self) -> None:
        """Refuse what cannot work before anything is begun, and an OUT that was begun with other settings.

        Raises:
            PalError: as said.
        """
        if not self.root.is_dir():
            raise PalError(f"--root {self.root}: no such folder; it holds the recordings that the world's recipe names")
        if self.device not in DEVICES:
            raise PalError(f"--device {self.device}: give one of {', '.join(DEVICES)}; {VISIBLE} says which GPUs may be used")
        _ = self.gpus
        self.shelf.recipe("world")
        if not self.chosen:
            raise PalError(f"{self.shelf.folder / 'arms'}: no recipes there")
        names = [recipe.name for recipe in self.chosen]
        if unknown := [name for name in self.candidates or () if name not in names]:
            what = "no arm of this run (ablations are named in --arms)"
            raise PalError(f"--best {','.join(unknown)}: {what}; there are {', '.join(names)}")
        if self.candidates is not None and self.mark("best").is_file() and self.best() not in self.judged:
            known = f"{self.out} has {self.best().name} as its best arm"
            raise PalError(f"--best {','.join(self.candidates)}: {known}; docs/lab.md says what to delete")
        if self.out.exists() and not self.out.is_dir():
            raise PalError(f"--out {self.out} is a file; give a folder")
        fixed = {"tiny": self.shelf.tiny, "steps": self.shelf.steps, "factors": list(self.factors)}
        fixed["compiled"] = self.shelf.compiled
        fixed["most_questions"] = self.most_questions
        fixed["wav"] = self.wav
        file = self.out / SETTINGS
        if file.is_file():
            there = _LATER | read_json(file)["fixed"]
            if there != fixed:
                keys = ", ".join(key for key in fixed if there.get(key) != fixed[key])
                raise PalError(f"{self.out} was begun with other settings ({keys}); choose another folder, or the same settings")
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise PalError(f"{self.out} is not empty and holds no lab ({SETTINGS} is missing); choose another folder")
        self.out.mkdir(parents=True, exist_ok=True)
        last = {
            "root": str(self.root.resolve()), "recipes": str(self.shelf.folder.resolve()), "arms": self.arms,
            "seeds": list(self.seeds), "jobs": self.jobs, "device": self.device, "dtype": self.dtype,
            "batch_size": self.batch_size, "workers": self.workers, "pace_steps": self.pace_steps,
            "most_gpus": self.most_gpus,
            "elsewhere": None if self.elsewhere is None else str(self.elsewhere.resolve()), "candidates": self.candidates,
        }  # fmt: skip
        write_text(file, json.dumps({"fixed": fixed, "last": last}) + "\n")

    def mark(self, name: str) -> Path:
        return self.out / "marks" / f"{name}.json"

    def run_folder(self, name: str, factor: float, seed: int) -> Path:
        return self.out / "runs" / f"{name}-x{factor:g}-{seed}"

    def frames(self, recipe: LabRecipe) -> Path:
        """Cached frames of all encoders that a recipe hears by."""
        return self.out / "frames" / "+".join(recipe.encoders)

    def catalogue(self) -> Catalogue:
        """The recordings of the world."""
        config = read_mix(self.out / "world").config
        assert isinstance(config, MixConfig)
        return read_catalogue(config)

    def labels(self) -> list[str]:
        """All that the world teaches a name of."""
        return sorted({clip.label for clips in self.catalogue().clips.values() for clip in clips})

    def factor_of(self, recipe: LabRecipe) -> float:
        """The chosen factor of an arm's learning rates."""
        return float(read_json(self.out / choice_file(recipe.family))["factor"])

    def best(self) -> LabRecipe:
        """The recipe of the best arm.

        Raises:
            PalError: it is not known yet.
        """
        if not self.mark("best").is_file():
            raise PalError(f"{self.out}: the best arm is not known yet; end the grid by `python -m benchmarks.lab run`")
        return self.shelf.arm(read_json(self.mark("best"))["arm"])

    def readers(self, share: float) -> int | None:
        """Processes that read sound for a step that is to have this share of the cores; None leaves it to `pal`.

        Left alone each of several steps would take nearly all cores.
        """
        if self.jobs == 1 or num_cores() <= 2:
            return None
        return max(1, min(_MOST_READERS, int(num_cores() * share)))

    def mixed(self, name: str) -> Step:
        """Scenes composed by the recipe of that name."""
        changes: dict[str, Any] = {"data.root": str(self.root.resolve())}
        changes |= {"data.audio_format": "wav"} if self.wav else {}
        if self.shelf.tiny:
            changes |= {f"data.{key}": value for key, value in _TINY_WORLD.items()}
        options = ["--workers", str(self.workers), *written(changes)]
        command = ["data", "mix", str(self.shelf.recipe(name).path), str(self.out / name), *options]
        made = (self.out / name / "mix.json",)
        return Step(name, "world", self.mark(name), products=made, commands=lambda: [command], on_gpu=False)

    def encoding(
        self, name: str, recipe: Path, manifests: list[Path], folder: Path, needs: tuple[str, ...], share: float = 1
    ) -> Step:
        """Frames of a recipe's encoders, read by this share of the cores."""
        roots = [word for root in self.roots for word in ("--root", str(root))]
        options = [
            "--recipe",
            str(recipe),
            *roots,
            "--dtype",
            self.dtype,
            "--device",
            self.device,
            *_workers(self.readers(share)),
        ]
        command = ["encode", *map(str, manifests), str(folder), *options]
        return Step(name, "frames", self.mark(name), needs, products=(folder / "cache.json",), commands=lambda: [command])

    def training(self, recipe: LabRecipe, factor: float, seed: int) -> list[list[str]]:
        """The command that trains an arm; none where that is done."""
        folder = self.run_folder(recipe.name, factor, seed)
        if (folder / "finished.json").is_file():
            return []
        return [["train", str(recipe.path), *self.arm_settings(recipe, factor, seed), "--out", str(folder), "--resume"]]

    def arm_settings(self, recipe: LabRecipe, factor: float, seed: int) -> list[str]:
        """What is changed in an arm's recipe."""
        frames = self.frames(recipe) if recipe.encoders else None
        return recipe.arm_settings(seed, factor, frames, self.roots, self.out / "tests" / "curve.jsonl")

    def evaluating(self, run: Path, out: Path, tests: Path, frames: Path | None, share: float = 1) -> list[str]:
        """The command that asks a run's model all that lies in a folder of tests; sound is read by this share of the cores."""
        roots = [word for root in self.roots for word in ("--root", str(root))]
        options = [*roots, "--device", self.device, "--batch-size", str(self.batch_size), "--resume"]
        cached = _workers(self.readers(share)) if frames is None else ["--frame-cache", str(frames)]
        return ["eval", str(run), str(out), *options_of(tests), *options, *cached]


def choice_file(family: str) -> Path:
    """Where a lab keeps the choice of a family's learning rates, from its OUT."""
    return Path("rates") / f"{family}.json"


def trial_file(family: str, factor: float) -> Path:
    """Where a lab keeps what one factor of them gave, from its OUT; the file is named as the step is."""
    return Path("sweep") / f"{family}-x{factor:g}.json"


def _workers(num: int | None) -> list[str]:
    return [] if num is None else ["--workers", str(num)]


def flow_in(out: Path) -> Flow:
    """The lab that was last run in a folder.

    Raises:
        PalError: there is none.
    """
    told = read_json(out / SETTINGS)
    try:
        fixed, last = _LATER | told["fixed"], dict(told["last"])
        shelf = Shelf(Path(last.pop("recipes")), fixed["tiny"], fixed["steps"], fixed["compiled"])
        root, seeds, factors = Path(last.pop("root")), tuple(last.pop("seeds")), tuple(fixed["factors"])
        elsewhere = last.pop("elsewhere", None)
        last["elsewhere"] = None if elsewhere is None else Path(elsewhere)
        last |= {"most_questions": fixed["most_questions"], "wav": fixed["wav"]}
        return Flow(root, out, shelf, seeds=seeds, factors=factors, **last)
    except (KeyError, TypeError) as error:
        raise PalError(
            f"{out / SETTINGS}: of another version of the lab; give the `run` command once more, it writes it"
        ) from error
