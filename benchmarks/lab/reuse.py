"""Language model and encoders of an earlier lab, taken from its OUT or from what `pack` copied, so that arms begin sooner.

FOLDER/runs/NAME/ ── same model, stages, seed and precision as this lab's recipe? ──► OUT/runs/NAME/, and a mark

NAME is lab-lm, lab-encoder-*, or where the bundle is made bundle-encoder-*, by the recipe of lab-encoder-*.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.lab.flow import Flow
from benchmarks.lab.questions import read_json
from benchmarks.lab.recipes import BUNDLE_ENCODER, LabRecipe

from pal_audio.data.manifest import write_text
from pal_audio.errors import PalError
from pal_audio.model.export import replaced_folder
from pal_audio.training.folder import resolved_recipe
from pal_audio.training.recipe import Recipe, load_recipe

_COMPARED = {"seed", "precision", "model", "adapter", "stages"}


def take_models(flow: Flow, folder: Path, bundle: bool = False) -> list[str]:
    """Copy those models that this lab needs and has not made yet, each whole or not at all.

    Args:
        flow: the lab, whose OUT is there.
        folder: OUT of another lab, or what `pack` made of it.
        bundle: encoders of the arms that may be the best one, trained on all development data, are needed too.

    Returns:
        Their names.

    Raises:
        PalError: there is none, or one was trained by another recipe than this lab's. Its data are not compared.
    """
    needed = {name: name.removeprefix("lab-") for recipe in flow.trained for name in recipe.bases}
    needed |= {f"{BUNDLE_ENCODER}{name}": f"encoder-{name}" for recipe in flow.may_be_best if bundle for name in recipe.encoders}
    recipes = {name: flow.shelf.recipe(needed[name]) for name in sorted(needed)}
    there = [name for name in recipes if _is_made(folder / "runs" / name, recipes[name])]
    if not there:
        what = f"looked for recipe.json and weights in runs/NAME of {', '.join(recipes)}"
        raise PalError(f"--models {folder}: no model of a lab is there ({what})")
    recipes = {name: recipes[name] for name in there if not _is_here(flow, name, recipes[name])}
    for name, recipe in recipes.items():
        _check(folder / "runs" / name / "recipe.json", recipe)
    for name in recipes:
        with replaced_folder(flow.out / "runs" / name) as temporary:
            shutil.copytree(folder / "runs" / name, temporary, dirs_exist_ok=True)
        mark, told = flow.mark(name), folder / "marks" / f"{name}.json"
        seconds = read_json(told).get("seconds", 0.0) if told.is_file() else 0.0
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_text(mark, json.dumps({"step": name, "kind": name, "seconds": seconds, "taken_from": str(folder)}) + "\n")
    return list(recipes)


def _is_made(run: Path, recipe: LabRecipe) -> bool:
    """Whether a run has ended and its weights are there; `pack` leaves out what is large, and takes what has not ended."""
    return (run / "recipe.json").is_file() and any((run / recipe.product).rglob("*.safetensors"))


def _is_here(flow: Flow, name: str, recipe: LabRecipe) -> bool:
    return flow.mark(name).is_file() and (flow.out / "runs" / name / recipe.product).exists()


def _check(told: Path, recipe: LabRecipe) -> None:
    """That a run's recipe is this one in all that its weights depend on."""
    try:
        made = _of_weights(resolved_recipe(told.parent))  # newer keys get their defaults
    except PalError as error:
        raise PalError(f"{told}: its recipe cannot be compared with {recipe.path} ({error}); leave it out of --models") from error
    ours = _of_weights(load_recipe(recipe.path, recipe.settings()[1::2]))
    differs = [key for key in ours if made[key] != ours[key]]
    if differs:
        raise PalError(
            f"{told}: trained by another recipe than {recipe.path} ({', '.join(differs)} differ); leave it out of --models"
        )


def _of_weights(recipe: Recipe) -> dict[str, Any]:
    """A recipe without its data and when it saves; an encoder's options with their defaults."""
    told = recipe.model_dump(mode="json", include=_COMPARED, exclude={"stages": {"__all__": {"save_every"}}})
    told["model"] |= {
        "encoder": None,
        "encoders": {name: c.model_dump(mode="json") for name, c in recipe.model.encoder_configs().items()},
    }
    return told
