"""`pal export`: a model as a folder of its own."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from pal_audio.commands import models

EXAMPLE = "Example: pal export runs/mine mine --merge"


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a model or of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to the weights and leave it out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is in OUT.")] = False,
) -> None:
    """Copies a model into a self-contained folder, with its adapter or merged."""
    name = models.resolve(model, "MODEL")
    with contextlib.redirect_stdout(sys.stderr):
        from transformers.utils.logging import disable_progress_bar

        from pal_audio.model.export import export as run

        disable_progress_bar()
        run(name, out, merge, overwrite)
    print(out)
