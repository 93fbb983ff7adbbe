"""The best arm again, on all development data: its encoders too; and the model as a folder of bfloat16 with its papers.

`as_scored` writes the best arm's first run instead: it has not heard the development recordings, and its scores are its own.

OUT/world-dev/          scenes of the recordings that the tests stand on (recipes/lab/world-dev.yaml)
OUT/runs/bundle-*       the encoders and the arm, trained on both worlds; the language model, which hears nothing, is kept
OUT/calibration.json    what the best arm's first run is worth
MODEL/                  model and processor, README.md (the card), ATTRIBUTION.md
"""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from benchmarks.lab.analysis import Grid, read_grid
from benchmarks.lab.calibrating import calibration
from benchmarks.lab.flow import Flow
from benchmarks.lab.questions import read_json
from benchmarks.lab.recipes import BUNDLE_ENCODER, ENCODER, LabRecipe, written
from benchmarks.lab.steps import Step

from pal_audio.data import MixConfig
from pal_audio.data.manifest import write_text
from pal_audio.data.mix import read_mix
from pal_audio.data.mixing.catalogue import SPLITS
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.model.export import save_folder
from pal_audio.training.report import table

MAX_BYTES = 20 * 10**6
MOST_PARAMETERS = 49 * MAX_BYTES // 100  # two bytes each, and room for tokenizer and papers
_RETRAINED_ON = "1 to 4", "5 to 49 (of the speaker theo 45 to 49)", ""
_TRAINED_ON = "1 to 3", "5 to 44 (none of the speaker theo)", ", its split `train`"
_OF_THE_RECIPE = """\
Of the identical recipe trained without the development recordings, asked about them; seeds: {seeds}. These weights were
trained on those recordings too, so they have no score of their own."""
_ITS_OWN = """\
Of these very weights before they were rounded to bfloat16, one run, asked about recordings that they were not trained on."""
_WORLDS = "world", "world-dev"
_AS_SCORED = "-as-scored"
_OLD, _NEW = f"runs/{ENCODER}", f"runs/{BUNDLE_ENCODER}"
_READERS = 0.25  # share of the cores that read sound for the bundle, beside the arms; dev/LOG.md
_URGENT_READERS = 0.5


def bundle(flow: Flow, model: Path) -> list[Step]:
    """The steps from a finished grid to the folder of the model.

    Args:
        flow: of the grid.
        model: new or empty folder.

    Raises:
        PalError: the best arm is not known, or the folder is not empty.
    """
    best = flow.best()
    check_target(model)
    sound, cached = _heard(flow, best)
    arm = _retrained(flow, cached, flow.best, (sound[-1].name,))
    return [*sound, arm, _written(flow, model, (arm.name,), retrained=True)]


def _retrained(flow: Flow, cached: Path | None, chosen: Callable[[], LabRecipe], needs: tuple[str, ...]) -> Step:
    """An arm's run on both worlds.

    Args:
        flow: of the grid.
        cached: frames of the encoders that it hears by.
        chosen: gives the arm once `needs` are done.
        needs: steps.
    """
    name, folder = "bundle-arm", flow.out / "runs" / "bundle-arm"

    def commands() -> list[list[str]]:
        best = chosen()
        recipe = write_recipe(flow, best, flow.factor_of(best))
        settings = recipe.arm_settings(flow.seeds[0], 1.0, cached, flow.roots, flow.out / "tests" / "curve.jsonl")
        return [_training(flow, folder, recipe, settings)]

    told, made = (lambda: {"arm": chosen().name}), (folder / "final",)
    return Step(name, name, flow.mark(name), needs, products=made, commands=commands, finish=told)


def as_scored(flow: Flow, model: Path) -> list[Step]:
    """The step that writes the best arm's first run as it is.

    Args:
        flow: of the grid.
        model: new or empty folder.

    Raises:
        PalError: as for `bundle`.
    """
    flow.best()
    check_target(model)
    return [_written(flow, model, (), retrained=False)]


def scored_step(flow: Flow, model: Path) -> Step:
    """That step within the grid: the model is there as soon as the best arm is known, whatever else is still to come."""
    return _written(flow, model, ("best",), retrained=False)


def _written(flow: Flow, model: Path, needs: tuple[str, ...], retrained: bool, follows: tuple[str, ...] = ()) -> Step:
    """The step that writes the folder; see `write_model`."""

    def finish() -> dict[str, Any]:
        best = flow.best()
        return {"arm": best.name, "bytes": write_model(flow, read_grid(flow.out), best, model, retrained), "model": str(model)}

    name, made = _name(retrained), (model / "README.md",)
    return Step(name, "bundle", flow.mark(name), needs, follows, products=made, finish=finish, on_gpu=False)


def _name(retrained: bool) -> str:
    return "bundle" if retrained else "as-scored"


def early_steps(flow: Flow, model: Path) -> list[Step]:
    """What is made beside the arms: the scored model, and all of `bundle` where every candidate hears by the same encoders.

    Otherwise what `bundle` needs of sound, by the encoders that most of them hear by. In order: sound, what stands behind the
    best arm in a list of steps. A sole candidate need not be judged before it is trained again.
    """
    candidates = flow.may_be_best
    hearing = [tuple(recipe.encoders) for recipe in candidates if recipe.encoders] or [()]
    most = Counter(hearing).most_common(1)[0][0]
    like = next(recipe for recipe in candidates if tuple(recipe.encoders) == most)
    sound, cached = _heard(flow, like)
    # Sound of all arms has the cores first, unless the bundle is as urgent.
    waits = f"frames-{flow.frames(like).name}" if most and not flow.is_bundle_urgent else "world"
    scored = scored_step(flow, scored_folder(model))
    steps = [replace(sound[0], needs=(waits,)), *sound[1:], scored]
    if any(tuple(recipe.encoders) != most for recipe in candidates):
        return steps
    is_sole = len(candidates) == 1 and not flow.mark("best").is_file()
    needs = ("lab-lm", f"rate-{like.family}") if is_sole else ("best",)
    arm = _retrained(flow, cached, (lambda: like) if is_sole else flow.best, (sound[-1].name, *needs))
    return [*steps, arm, _written(flow, model, (arm.name, "best"), retrained=True, follows=(scored.name,))]


def scored_folder(model: Path) -> Path:
    """Where the best arm's first run as it is goes beside a MODEL that is trained again, and is there long before it."""
    return model.with_name(f"{model.name}{_AS_SCORED}")


def is_made(flow: Flow, model: Path, retrained: bool = True) -> bool:
    """Whether the bundle was written into this very folder, of the arm that is the best one."""
    mark = flow.mark(_name(retrained))
    if not (mark.is_file() and flow.mark("best").is_file() and (model / "README.md").is_file()):
        return False
    told = read_json(mark)
    return told.get("model") == str(model) and told.get("arm") == flow.best().name


def check_target(model: Path) -> None:
    """That a model can be written into a folder.

    Raises:
        PalError: something else is in it.
    """
    unfinished = (model / "config.json").is_file() and not (model / "README.md").is_file()
    if model.exists() and not unfinished and (not model.is_dir() or any(model.iterdir())):
        scored = " (the scored run goes there)" if model.name.endswith(_AS_SCORED) else ""
        raise PalError(f"{model}{scored} is not empty; choose another folder, or delete what an earlier run wrote there")


def _heard(flow: Flow, like: LabRecipe) -> tuple[list[Step], Path | None]:
    """The second world, the encoders of an arm trained on both, and where their frames will be."""
    encoders = like.encoders
    steps = [flow.mixed("world-dev")]
    share = _URGENT_READERS if flow.is_bundle_urgent else _READERS
    readers = flow.readers(share / max(1, len(encoders)))
    reading = [] if readers is None else written({"workers": readers})
    for name in encoders:
        of = flow.shelf.recipe(f"encoder-{name}")
        step = f"{BUNDLE_ENCODER}{name}"
        folder = flow.out / "runs" / step
        commands, made = [_training(flow, folder, of, reading)], (folder / of.product,)
        steps.append(Step(step, step, flow.mark(step), ("world-dev",), products=made, commands=partial(list, commands)))
    if not encoders:
        return steps, None
    frames = flow.out / "frames" / f"bundle-{'+'.join(encoders)}"
    manifests = [*(flow.out / world / "train.jsonl" for world in _WORLDS), flow.out / "tests" / "curve.jsonl"]
    needs = tuple(step.name for step in steps)
    recipe = write_recipe(flow, like, 1.0, "bundle-frames")
    return [*steps, flow.encoding(f"frames-{frames.name}", recipe.path, manifests, frames, needs, share)], frames


def _training(flow: Flow, folder: Path, of: LabRecipe, settings: list[str]) -> list[str]:
    """The command of a run on both worlds."""
    both = written({"data.train": _sources(flow, of), "data.roots": [str(root) for root in flow.roots]})
    return ["train", str(of.path), *of.settings(), *settings, *both, "--out", str(folder), "--resume"]


def _sources(flow: Flow, recipe: LabRecipe) -> list[dict[str, Any]]:
    """What a recipe trains on, of both worlds."""
    found = []
    for source in recipe.content["data"]["train"]:
        plain = {"path": source} if isinstance(source, str) else dict(source)
        file = Path(plain["path"])
        for world in _WORLDS:
            name = world if file.stem == "train" else f"{world} {file.stem}"
            found.append({**plain, "path": str(flow.out / world / file.name), "name": name})
    return found


def write_recipe(flow: Flow, best: LabRecipe, factor: float, name: str = "bundle") -> LabRecipe:
    """An arm's recipe at a factor of its rates, with the encoders of the bundle; stands alone as OUT/NAME.yaml."""
    content = json.loads(json.dumps(best.content).replace(_OLD, _NEW))
    for stage in content["stages"]:
        stage["train"] = {part: float(rate) * factor for part, rate in stage["train"].items()}
    path = flow.out / f"{name}.yaml"
    write_text(path, json.dumps(content, indent=1) + "\n")
    return replace(best, path=path)


def write_model(flow: Flow, grid: Grid, best: LabRecipe, target: Path, retrained: bool) -> int:
    """Write the model's folder; returns its bytes.

    Args:
        flow, grid, best, target: what and where to.
        retrained: the run on all development data; otherwise the arm's first run.

    Raises:
        PalError: it is larger than `MAX_BYTES`, or another arm was trained again than the best one.
    """
    mark = flow.mark("bundle-arm")
    if retrained and (trained := read_json(mark).get("arm", best.name)) != best.name:
        raise PalError(f"{mark}: {trained} was trained again, and the best arm is {best.name}; delete this and runs/bundle-arm")
    run = flow.out / "runs" / "bundle-arm" if retrained else flow.run_folder(best.name, flow.factor_of(best), flow.seeds[0])
    model, processor = load(run / "final")
    model.config.calibration = calibration(flow)
    save_folder(model.to(torch.bfloat16), processor, target)
    write_text(target / "ATTRIBUTION.md", attribution(flow, retrained))
    write_text(target / "README.md", card(flow, grid, best, retrained))  # last: it says that the step is done
    num_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if num_bytes > MAX_BYTES:
        (target / "README.md").unlink()  # the step is not done
        raise PalError(f"{target}: the model has {num_bytes} bytes, over the limit of {MAX_BYTES}; take a smaller LM or encoder")
    return num_bytes


def card(flow: Flow, grid: Grid, best: LabRecipe, retrained: bool) -> str:
    """The model card; its scores are of the same recipe trained without the development recordings, or of this very model."""
    seeds = grid.seeds(best.name) if retrained else [flow.seeds[0]]
    told = [grid.results[best.name, seed] for seed in seeds]
    rows = []
    for name, task in grid.index["tasks"].items():
        scores = [item["tasks"][name]["score"] for item in told]
        what = "errors over words" if task["metric"] == "errors" else "right"
        spread = (f"{100 * value:.1f}%" for value in (mean(scores), min(scores), max(scores))[: 3 if retrained else 1])
        rows.append((name, what, str(len(task["ids"])), *spread))
    labels = ", ".join(flow.labels())
    scored = table(("task", "score", "n", *(("mean", "lowest", "highest") if retrained else ("value",))), rows)
    num_parameters, hashes = f"{told[0]['parameters']['total']:,}", (told[0]["recipe_hash"], told[0]["data_hash"])
    whose = _OF_THE_RECIPE.format(seeds=len(told)) if retrained else _ITS_OWN
    folds, digits, notes = _RETRAINED_ON if retrained else _TRAINED_ON
    return f"""---
license: cc-by-sa-4.0
library_name: pal-audio
tags: [audio, audio-question-answering]
---
# PAL, the lab's model

A small audio-LLM of {num_parameters} parameters in bfloat16, made by `python -m benchmarks.lab bundle` of pal-audio: the arm
`{best.name}` of the lab, with everything that hears trained from scratch on the recordings below and scenes composed of them.

## Scores

{whose}

{scored}

## Data

- ESC-10 (K. J. Piczak, 2015), folds {folds}: CC BY 3.0 as a set; the authors of the clips are behind the ids in ATTRIBUTION.md.
- Free Spoken Digit Dataset (Z. Jackson and contributors), recordings {digits}: CC BY-SA 4.0.
- Notes rendered from the FluidR3 General MIDI soundfont{notes}: MIT.

## Licence

The weights: CC BY-SA 4.0, because of the spoken digits. ATTRIBUTION.md belongs to them.

## Limits

It knows a closed world and answers within it whatever it hears: {labels}.
English questions in the wordings of the lab's tasks, scenes of up to about ten seconds, digits of few speakers. It does not know
when it does not know. Recipe `{hashes[0]}`, data `{hashes[1]}`.
"""


def attribution(flow: Flow, retrained: bool) -> str:
    """Who recorded what: the Freesound ids of the ESC-10 clips that were trained on."""
    config = read_mix(flow.out / "world").config
    assert isinstance(config, MixConfig)
    clips = flow.catalogue().clips
    used = {Path(clip.path).name for split in SPLITS if retrained or split == "train" for clip in clips[split]}
    lines = []
    for source in config.resolved().sources:
        table_of = Path(str(getattr(source, "root", ""))) / "meta" / "esc50.csv"
        if source.type not in ("esc10", "esc50") or not table_of.is_file():
            continue
        with open(table_of, encoding="utf-8", newline="") as file:
            found = sorted({(row["category"], int(row["src_file"])) for row in csv.DictReader(file) if row["filename"] in used})
        lines += [f"- {category}: https://freesound.org/s/{number}/" for category, number in found]
    if not lines:
        raise PalError("no ESC-10 recordings are among the world's sources, so there is nothing to attribute them by")
    return "\n".join([
        "# Attribution",
        "",
        "ESC-10 (K. J. Piczak, \"ESC: Dataset for Environmental Sound Classification\", 2015), CC BY 3.0 as a set. Its clips",
        "were cut from these recordings of Freesound; the author and licence (CC0, CC BY or CC Sampling+) of each stand there:",
        "",
        *lines,
        "",
        "Free Spoken Digit Dataset (Zohar Jackson and contributors), CC BY-SA 4.0, https://github.com/Jakobovski/free-spoken-digit-dataset",
        "",
        "FluidR3 General MIDI soundfont (Frank Wen and contributors), MIT.",
        "",
    ])  # fmt: skip
