"""Recipes: one YAML that says the model, the data and the stages of training."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, field_validator, model_validator

from pal_audio.config import StrictConfig, parse_config
from pal_audio.data.mix import DataConfig
from pal_audio.errors import PalError
from pal_audio.model.building import ModelSpec
from pal_audio.training.groups import GROUPS


class Stage(StrictConfig):
    """One stage: what trains, for how long, how fast.

    Attributes:
        train: learning rate of each part that trains; see `training.groups`. Whatever is not named is frozen.
        steps, epochs: its length, one of the two.
        batch_size: examples a step.
        warmup_steps: linear warm-up.
        schedule: after the warm-up, to zero by cosine or linearly, or constant.
    """

    name: str = "stage"
    train: dict[str, float]
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int = Field(500, ge=1)

    @field_validator("train")
    @classmethod
    def _known_groups(cls, train: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in train if name not in GROUPS]
        if unknown:
            raise PalError(f"no part of a model is called {unknown[0]!r}; there are {', '.join(GROUPS)}")
        if not train or any(rate <= 0 for rate in train.values()):
            raise PalError("name at least one part with a learning rate above 0; what is not named is frozen")
        return train

    @model_validator(mode="after")
    def _one_length(self) -> "Stage":
        if (self.steps is None) == (self.epochs is None):
            raise PalError(f"stage {self.name!r}: give either `steps` or `epochs`")
        return self

    def num_steps(self, num_examples: int) -> int:
        """Steps of the stage over `num_examples` examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * num_examples / self.batch_size))


class Recipe(StrictConfig):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    precision: Literal["float32", "bfloat16"] = "float32"
    model: ModelSpec
    data: DataConfig
    stages: list[Stage] = Field(min_length=1)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and change it.

    Args:
        path: a YAML file.
        overrides: `a.b=value`, the value as YAML; a number in the path counts list entries from 0.

    Raises:
        PalError: the file cannot be read, or a key or value is wrong.
    """
    file = Path(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise PalError(f"{file}: cannot be read as a recipe: {reason}") from error
    if not isinstance(content, dict):
        raise PalError(f"{file}: a recipe is a mapping with `name`, `model`, `data` and `stages`")
    for override in overrides or []:
        _override(content, override)
    return parse_config(TypeAdapter(Recipe), content, f"{file.name}: recipe")


def _override(content: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise PalError(f"--set {override!r}: write it as a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PalError(f"--set {override!r}: the value is not YAML") from error
    place: Any = content
    for number, key in enumerate(keys):
        last = number == len(keys) - 1
        if isinstance(place, list):
            if not key.isdigit() or int(key) >= len(place):
                raise PalError(f"--set {override!r}: {key!r} is no entry of a list of {len(place)}")
            step: Any = int(key)
        elif isinstance(place, dict):
            step = key
            if not last and place.get(step) is None:
                place[step] = {}
        else:
            raise PalError(f"--set {override!r}: {'.'.join(keys[:number])} has no parts")
        if last:
            place[step] = value
        else:
            place = place[step]
