"""Loads what the extra `eval` installs."""

from importlib import import_module
from typing import Any

from pal_audio.errors import PalError


def load(module: str, purpose: str) -> Any:
    """A module of the extra `eval`.

    Args:
        module: its full name.
        purpose: what needs it, for the error.

    Raises:
        PalError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.partition(".")[0] != error.name.partition(".")[0]:
            raise  # it is there and lacks something of its own
        package = {"sklearn": "scikit-learn", "whisper_normalizer": "whisper-normalizer"}.get(error.name, error.name)
        raise PalError(f"{purpose} needs the package {package}: pip install 'pal-audio[eval]'") from None


def same_length(first: int, second: int, names: tuple[str, str]) -> None:
    """Two lists that belong together have one length, and are not empty.

    Raises:
        PalError: They have not, or are.
    """
    if first != second:
        raise PalError(f"{first} {names[0]} but {second} {names[1]}: give one for each item")
    if not first:
        raise PalError(f"there are no {names[0]} to score")
