"""What every configuration shares: unknown keys are errors that name the nearest known one, and faults are one line."""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from pal_audio.errors import PalError

ConfigT = TypeVar("ConfigT")
EntryT = TypeVar("EntryT")


class StrictConfig(BaseModel):
    """A configuration in which an unknown key is an error that names the nearest known one, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest_key(cls, values: Any) -> Any:
        known = cls.model_fields  # looked up once: a manifest has a hundred thousand lines
        for key in values if isinstance(values, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                mend = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise ValueError(f"unknown key {key!r}; {mend}")
        return values


def lookup(known: Mapping[str, EntryT], name: str, missing: str) -> EntryT:
    """An entry of a registry.

    Args:
        known: the registry.
        name: what the user wrote.
        missing: what the error says where there is no such entry, as in "no task is named 'x'".

    Raises:
        PalError: there is none of that name; the nearest is given.
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise PalError(f"{missing}; " + (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"))
    return known[name]


def faults(error: ValidationError) -> list[str]:
    """Every fault of a validation with its place, each on one line."""
    found = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"]
        if fault["type"] == "union_tag_not_found":
            message = f"say its {fault['ctx']['discriminator'].strip(chr(39))} beside these settings"
        text = " ".join(message.removeprefix("Value error, ").split())
        found.append(f"{place}: {text}" if place else text)
    return found


def one_line(error: ValidationError) -> str:
    """Every fault of a validation with its place, on one line."""
    return "; ".join(faults(error))


def parse_config(adapter: TypeAdapter[ConfigT], values: object, what: str) -> ConfigT:
    """Validate user input, and say in one line what is wrong.

    Args:
        adapter: of the type to validate to.
        values: what the user wrote, usually a dict.
        what: the name of the thing in the error, such as "encoder".

    Raises:
        PalError: the input is no valid configuration; every fault is named with its place and value.
    """
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        raise PalError(f"{what} configuration: {one_line(error)}") from None
