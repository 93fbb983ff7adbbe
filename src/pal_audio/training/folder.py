"""The folder of a run: begun, gone on with, or refused."""

import hashlib
import json
import shlex
import shutil
from pathlib import Path

from pydantic import TypeAdapter

from pal_audio.config import parse_config
from pal_audio.data.folder import LOCK
from pal_audio.errors import PalError
from pal_audio.training.recipe import Recipe


def identity_of(recipe: Recipe) -> str:
    """What a run may go on with: all of its recipe but how the work is shared and where numbers are shown."""
    return hashlib.sha256(
        recipe.model_dump_json(exclude={"parallel", "trackers", "unreadable_clips", "workers"}).encode()
    ).hexdigest()[:16]


def prepare_folder(folder: Path, identity: str, resume: bool, overwrite: bool) -> None:
    """Take a new or empty folder, or one that a run with this identity was begun in.

    Args:
        folder: exists.
        identity: by `identity_of`.
        resume: go on with what it holds.
        overwrite: delete what it holds.

    Raises:
        PalError: it holds something else, or it is not said what to do with it.
    """
    held = [item for item in folder.iterdir() if item.name != LOCK]
    if held and overwrite:
        if not (folder / "recipe.json").is_file():
            raise PalError(f"{folder} holds something that is no run; delete it yourself or choose another folder")
        for item in held:
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    elif held and not resume:
        raise PalError(f"{folder} is not empty; --resume goes on with it, --overwrite replaces it")
    elif held:
        try:
            found = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PalError(f"{folder} holds no run that can be resumed (recipe.json is missing or unreadable)") from error
        # What was begun before there was some key of recipes has another identity than with the key at its default.
        if identity != found and identity != identity_of(resolved_recipe(folder)):
            raise PalError(f"{folder} was begun with another recipe; choose another folder, or --overwrite")


def command_again(recipe_path: str | Path, overrides: list[str] | None, folder: Path) -> str:
    """The command that goes on with a stopped run."""
    settings = [word for override in overrides or [] for word in ("--set", override)]
    return shlex.join(["pal", "train", str(recipe_path), *settings, "--out", str(folder), "--resume"])


def resolved_recipe(run: Path) -> Recipe:
    """The recipe that a run was made by, overrides included.

    Raises:
        PalError: the folder holds no run, or one of a recipe that this version does not read.
    """
    try:
        written = json.loads((run / "recipe.json").read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PalError(f"{run}: no run here (recipe.json is missing or unreadable)") from error
    return parse_config(TypeAdapter(Recipe), written, f"{run / 'recipe.json'}: recipe")


def begun_identity(run: Path) -> str:
    """The identity that a described run was begun with, which its checkpoints carry."""
    return str(json.loads((run / "recipe.json").read_text(encoding="utf-8"))["identity"])
