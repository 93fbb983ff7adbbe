"""Recipes that stand on another: `base: other.yaml` and what differs. Nothing here loads torch.

Mappings are merged key by key, and null takes a key away. A list is replaced by a list; a mapping whose keys are numbers
changes those entries of it, counted from 0. Everything else takes the place of what the base says. The base is a file beside
the recipe, or a shipped recipe ("lab/arm.yaml") where the folder has no such file.
"""

from pathlib import Path
from typing import Any

import yaml

import pal_audio
from pal_audio.errors import PalError

_MAX_DEPTH = 8


def read_recipe(path: Path) -> dict[str, Any]:
    """The content of a recipe file, laid over that of its bases.

    Raises:
        PalError: a file cannot be read, is no mapping, or the bases go round in a circle.
    """
    layers: list[dict[str, Any]] = []
    files: list[Path] = []
    file: Path | None = path
    while file is not None:
        content = _read(file)
        files.append(file)
        base = content.pop("base", None)
        if base is not None and not (isinstance(base, str) and base):
            raise PalError(f"{file}: base: {base!r} must be the name of another recipe's file")
        if len(files) > _MAX_DEPTH:
            raise PalError(f"{path}: more than {_MAX_DEPTH} bases, or a circle: {' -> '.join(item.name for item in files)}")
        layers.append(content)
        file = None if base is None else _base(file, base)
    result: dict[str, Any] = {}
    for content in reversed(layers):
        result = _merged(result, content, str(path))
    return result


def shipped_folder() -> Path:
    """The folder of recipes: inside the package when installed from a wheel, at the root of a working copy."""
    package = Path(pal_audio.__file__).parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return folder
    raise RuntimeError(f"{package / 'recipes'} is missing: the installation is incomplete, install pal-audio again")


def _base(file: Path, name: str) -> Path:
    beside = file.parent / name
    if beside.is_file():
        return beside
    if ".." not in Path(name).parts and not Path(name).is_absolute() and (shipped_folder() / name).is_file():
        return shipped_folder() / name
    raise PalError(f"{file}: base: no such recipe {name}, neither beside it nor among the shipped ones")


def _merged(below: Any, above: Any, place: str) -> Any:
    if not isinstance(above, dict):
        return above
    if isinstance(below, list):
        wrong = [key for key in above if not (isinstance(key, int) and 0 <= key < len(below))]
        if wrong:
            raise PalError(f"{place}: {wrong[0]!r} is no entry of the base's list of {len(below)}")
        return [_merged(item, above[n], f"{place}: {n}") if n in above else item for n, item in enumerate(below)]
    result = dict(below) if isinstance(below, dict) else {}
    for key, value in above.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value, f"{place}: {key}")
    return result


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise PalError(f"{file}: cannot be read as a recipe: {reason}") from error
    if not isinstance(content, dict):
        raise PalError(f"{file}: a recipe is a mapping with `name`, `model`, `data` and `stages`")
    return content
