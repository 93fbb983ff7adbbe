"""`pal info`: what a model consists of."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

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
    description["folder"] = _folder(Path(name))
    if as_json:
        print(json.dumps(description))
    else:
        import yaml

        print(yaml.safe_dump(description, sort_keys=False, allow_unicode=True), end="")


def _folder(folder: Path) -> dict[str, Any]:
    """Bytes on the disk, and what has to be added to them."""
    bases = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("bases")
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"path": str(folder), "bytes": num_bytes, "holds": "everything" if bases is None else "trained parts", "bases": bases}
