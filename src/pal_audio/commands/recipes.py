"""`pal recipes`: the recipes that come with the package."""

import difflib
import itertools
import re
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from pal_audio.errors import PalError
from pal_audio.training.overlay import read_recipe, shipped_folder

app = typer.Typer(help="The recipes that come with the package.", no_args_is_help=False, epilog="Example: pal recipes list")


def shipped_names() -> list[str]:
    """Names of the shipped recipes, sorted; also what the shell completes. Of one in a subfolder: "lab/world"."""
    folder = shipped_folder()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    return sorted(names, key=lambda name: (name.count("/") > 0, name))


def shipped(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        PalError: there is none of that name; the message gives the nearest.
    """
    names = shipped_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise PalError(
            f"no shipped recipe is named {name!r}; "
            + (f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}")
        )
    return shipped_folder() / f"{name}.yaml"


def find(recipe: str) -> Path:
    """The file that RECIPE means on a command line: a path, or the name of a shipped recipe.

    Raises:
        PalError: it is neither.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    names = shipped_names()
    if recipe not in names and (path.suffix or path.name != recipe):  # names such as llama-3.2 hold a dot
        meant = [name for name in names if path.with_suffix("").as_posix().endswith(name)]
        hint = f"; a recipe of that name is shipped: use `{max(meant, key=len)}` alone" if meant else ""
        if not meant and not path.suffix and (near := difflib.get_close_matches(recipe, names, n=1)):
            hint = f"; did you mean the shipped {near[0]!r}?"
        raise PalError(f"no such recipe file: {recipe}{hint}")
    return shipped(recipe)


def title(path: Path) -> str:
    """What a recipe says of itself: its opening comment up to the first full stop or colon."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
    return re.split(r"[.:](?: |$)", comment)[0]


Name = Annotated[str, typer.Argument(metavar="NAME", help="A name out of `pal recipes list`.", autocompletion=shipped_names)]


@app.command("list", epilog="Example: pal recipes list")
def list_recipes() -> None:
    """Names the recipes, with a line on each."""
    names = shipped_names()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:<{width}}  {title(shipped(name))}".rstrip())


@app.command("show", epilog="Example: pal recipes show quickstart")
def show(name: Name) -> None:
    """Prints a recipe."""
    print(shipped(name).read_text(encoding="utf-8"), end="")


@app.command("copy", epilog="Example: pal recipes copy quickstart mine.yaml")
def copy(
    name: Name,
    target: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to; a folder, or the file's name.")] = Path("."),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Copies a recipe, to be changed; one that stands on another is written out whole."""
    source = shipped(name)
    file = target / source.name if target.is_dir() else target
    if file.exists() and not overwrite:
        raise PalError(f"{file} is there already: give another name, or --overwrite")
    text = source.read_text(encoding="utf-8")
    if re.search(r"^base:", text, re.MULTILINE):
        comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
        text = comment + yaml.safe_dump(read_recipe(source), sort_keys=False, allow_unicode=True, width=120)
    file.write_text(text, encoding="utf-8")
    print(f"pal: copied to {file}", file=sys.stderr)
