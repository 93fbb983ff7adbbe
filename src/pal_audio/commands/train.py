"""`pal train`: runs a recipe."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pal_audio.commands import recipes
from pal_audio.errors import PalError

EXAMPLE = "Example: pal train quickstart --set stages.0.steps=50 --out runs/short"

RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A file, or a name out of `pal recipes list`.", autocompletion=recipes.shipped_names),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe, as in data.seed=2; repeatable."),
]


def train(
    recipe: RecipeArgument,
    settings: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Otherwise under ./runs, named by the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in this folder stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in this folder.")] = False,
    only_plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: print one JSON object.")] = False,
) -> None:
    """Trains a model as a recipe says."""
    if resume and overwrite:
        raise PalError("--resume and --overwrite exclude each other: go on with the run, or replace it")
    if as_json and not only_plan:
        raise PalError("--json goes with --plan; a run's numbers are in its folder, see docs/training.md")
    path, overrides = recipes.find(recipe), checked_settings(settings)
    if only_plan:
        _plan(path, overrides, out, as_json)
        return
    from pal_audio.training.processes import leave
    from pal_audio.training.run import train as run

    run(path, overrides, out, resume, overwrite)
    leave()


def _plan(path: Path, overrides: list[str], out: Path | None, as_json: bool) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from rich.console import Console

        from pal_audio.training.preflight import plan_run
        from pal_audio.training.processes import join, leave

        plan, is_main = plan_run(path, overrides, out), join().is_main
        leave()
    if not is_main:
        return
    if as_json:
        print(json.dumps(plan.as_dict()))
    else:
        plan.show(Console())


def checked_settings(settings: list[str] | None) -> list[str]:
    """The values of `--set`, refused where one is not KEY=VALUE."""
    for setting in settings or []:
        key, equals, _ = setting.partition("=")
        if not equals or not all(part for part in key.split(".")):
            raise PalError(f"--set {setting}: write it as KEY=VALUE, for example --set data.seed=2")
    return settings or []
