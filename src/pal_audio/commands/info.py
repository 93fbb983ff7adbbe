"""`pal info`: what a model consists of."""

import contextlib
import json
import sys
from typing import Annotated

import typer

from pal_audio.commands import models

EXAMPLE = "Example: pal info runs/quickstart"


def info(
    folder: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a model or of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Shows a model's streams, parameters by part, sizes and provenance."""
    name = models.resolve(folder, "MODEL")
    with contextlib.redirect_stdout(sys.stderr):
        model, _ = models.load(name, "cpu")
        from pal_audio.model import describe

        description = describe(model)
    if as_json:
        print(json.dumps(description))
    else:
        import yaml

        print(yaml.safe_dump(description, sort_keys=False, allow_unicode=True), end="")
