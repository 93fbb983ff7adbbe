"""`type: manifests` in a recipe's `data:`: one's own examples, from one manifest or several with weights.

data:
  type: manifests
  train: [{path: a.jsonl}, {path: b.jsonl, weight: 0.5, name: open}]
  test: [held_out.jsonl]
  roots: [/where/the/sound/lies]
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pal_audio.config import StrictConfig
from pal_audio.errors import PalError


class SourceConfig(StrictConfig):
    """A manifest to train on.

    Attributes:
        path: of the manifest, from the folder in which the command runs.
        weight: how often each example counts in an epoch. 2 means twice; 0.5 means a half of them, chosen by the seed, and
            always the same half.
        name: what a stage's `sources` calls it; the file's name without its ending where it is left out.
    """

    path: Path
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    name: str = ""

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value

    @property
    def title(self) -> str:
        return self.name or self.path.stem


class ManifestsConfig(StrictConfig):
    """Manifests to train and to be tested on.

    Attributes:
        train: see `SourceConfig`; a plain path is one too.
        test: manifests of held-out examples.
        roots: folders outside a manifest's own that its sound may lie in.
        seed: of the choice that weights below 1 make.
    """

    type: Literal["manifests"] = "manifests"
    train: list[SourceConfig] = Field(min_length=1)
    test: list[Path] = Field(min_length=1)
    roots: list[Path] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("train")
    @classmethod
    def _distinct_names(cls, train: list[SourceConfig]) -> list[SourceConfig]:
        names = [source.title for source in train]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise PalError(f"two sources are called {twice[0]!r}; give each a `name` of its own")
        return train
