"""`pal encode`: a frozen encoder's frames, once, for training to read."""

import contextlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pal_audio.commands import models, recipes
from pal_audio.commands.data import progress_bar
from pal_audio.errors import PalError

if TYPE_CHECKING:
    from pal_audio.encoders import AudioEncoder

EXAMPLE = "Example: pal encode train.jsonl test.jsonl frames --recipe mine.yaml --verify 20"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def encode(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Files in .jsonl.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the frames; an unfinished one is gone on with.")],
    model: Annotated[str | None, typer.Option(metavar="FOLDER", help="Encoders of this model or run.")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="Encoders that this recipe names.")] = None,
    encoder: Annotated[str | None, typer.Option(metavar="NAME", help="One of several encoders. Otherwise all.")] = None,
    roots: Annotated[
        list[Path] | None, typer.Option("--root", metavar="DIR", help="A folder outside a manifest's own that may hold audio.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="What frames are stored in.")] = Dtype.float32,
    verify: Annotated[int, typer.Option(min=0, metavar="N", help="Then encode N random clips again and compare.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=256, help="Processes that read sound. Otherwise all cores but one.", show_default=False),
    ] = None,
    device: models.DeviceOption = "auto",
) -> None:
    """Stores the frames of frozen encoders, which `frame_cache` of a recipe reads instead of encoding."""
    if (model is None) == (recipe is None):
        raise PalError("give either --model or --recipe: it says which encoders to use")
    for root in roots or []:
        if not root.is_dir():
            raise PalError(f"--root {root}: no such folder")
    folder = None if model is None else models.resolve(model, "--model")
    path = None if recipe is None else recipes.find(recipe)
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not mix with the answer
        from pal_audio.data import encode as frames
        from pal_audio.data.cores import reading_workers
        from pal_audio.data.manifest import read_manifest

        parts = [part for item in manifests for example in read_manifest(item, roots or []) for part in example.audio]
        place = models.pick_device(device)
        encoders = _of_model(folder, encoder) if folder is not None else _of_recipe(path, encoder)
        encoders = {name: item.to(place) for name, item in encoders.items()}
        with progress_bar("encoding") as report:
            num = frames.encode(parts, encoders, out, dtype.value, report, num_workers=reading_workers(workers))
        compared = frames.verify(parts, encoders, out, verify) if verify else None
    print(out)
    print(f"pal: {num} new entries", file=sys.stderr)
    if compared is not None:
        print(f"pal: {compared[0]} clips encoded again, the largest difference is {compared[1]:.3g}", file=sys.stderr)


def _of_model(folder: str, name: str | None) -> "dict[str, AudioEncoder]":
    from pal_audio.data.encoder_identity import check_frozen

    model, _ = models.load(folder, "cpu")
    chosen = {key: model.encoders[key] for key in _chosen(list(model.encoders), name)}
    check_frozen({key: item.config for key, item in chosen.items()})
    return chosen


def _of_recipe(path: Path | None, name: str | None) -> "dict[str, AudioEncoder]":
    from pal_audio import encoders
    from pal_audio.data.encoder_identity import check_frozen
    from pal_audio.training.recipe import load_recipe

    assert path is not None
    configs = load_recipe(path).model.encoder_configs()
    configs = {key: configs[key] for key in _chosen(list(configs), name)}
    check_frozen(configs)
    for key, config in configs.items():
        if config.checkpoint is None:
            raise PalError(f"{path}: encoder {key!r} has no checkpoint: its weights would be random, and others in each run")
    return {key: encoders.build(config).eval() for key, config in configs.items()}


def _chosen(names: list[str], name: str | None) -> list[str]:
    if name is not None and name not in names:
        raise PalError(f"--encoder {name}: there is none of that name; there are {', '.join(names)}")
    return names if name is None else [name]
