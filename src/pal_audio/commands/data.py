"""`pal data`: makes and checks data."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from pal_audio.commands import recipes
from pal_audio.commands.train import RecipeArgument, SetOption, checked_settings

app = typer.Typer(help="Makes data.", epilog="Example: pal data mix quickstart scenes")


@app.command("mix", epilog="Example: pal data mix quickstart scenes --set data.seed=2")
def mix(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the sounds and their manifest.")],
    settings: SetOption = None,
) -> None:
    """Composes the scenes of a recipe's data section: sounds, and a manifest of questions with exact answers."""
    path, overrides = recipes.find(recipe), checked_settings(settings)
    from pal_audio.data.mix import build
    from pal_audio.training.recipe import load_recipe

    with _progress_bar("composing") as report:
        manifests = build(load_recipe(path, overrides).data, out, report)
    for manifest in manifests:
        print(manifest)


@contextlib.contextmanager
def _progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calls with what is done and what there is in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
