"""`type: manifests` and `type: shards` in a recipe's `data:`: one's own examples, of one source or several with weights.

data:
  type: manifests
  train: [{path: a.jsonl}, {path: b.jsonl, weight: 0.5, name: open}]
  test: [held_out.jsonl]
  roots: [/where/the/sound/lies]

data:
  type: shards
  train: [{shards: a}, {shards: "hf://datasets/someone/sounds/*.tar", name: hub, question: What do you hear?}]
  test: [held_out.jsonl]
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
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
        check_names(train)
        return train


class ShardsSourceConfig(StrictConfig):
    """Shards to train on.

    Attributes:
        shards: a folder of `pal data shard`, or a folder, a glob or one file of other WebDataset tars; a path or an address that
            fsspec knows (hf://, s3://, ...).
        weight: as of a manifest.
        name: what a stage's `sources` calls it; where it is left out, the last part of `shards` that is no pattern, without its
            ending.
        question: asked in examples that hold a text and sound alone; an error where one is needed and not given.
    """

    shards: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    name: str = ""
    question: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return {"shards": str(value)}
        if isinstance(value, dict) and isinstance(value.get("shards"), Path):
            return {**value, "shards": str(value["shards"])}
        return value

    @property
    def title(self) -> str:
        plain = [part for part in PurePosixPath(self.shards).parts if not set(part) & set("*?[")]
        return self.name or PurePosixPath((plain or [self.shards])[-1]).stem


class ShardsConfig(StrictConfig):
    """Shards to train on, streamed, and manifests to be tested on.

    Attributes:
        train: see `ShardsSourceConfig`; a plain path is one too.
        test: manifests of held-out examples.
        roots: folders outside a manifest's own that its sound may lie in.
        seed: of the choice that weights make.
        shuffle_buffer: see `ShardStream`.
    """

    type: Literal["shards"] = "shards"
    train: list[ShardsSourceConfig] = Field(min_length=1)
    test: list[Path] = Field(min_length=1)
    roots: list[Path] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0, lt=2**32)
    shuffle_buffer: int = Field(default=1000, ge=1)

    @field_validator("train")
    @classmethod
    def _distinct_names(cls, train: list[ShardsSourceConfig]) -> list[ShardsSourceConfig]:
        check_names(train)
        return train


def check_names(train: Sequence[SourceConfig | ShardsSourceConfig]) -> None:
    """That a stage can tell its sources apart.

    Raises:
        PalError: two have one name.
    """
    names = [source.title for source in train]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PalError(f"two sources are called {twice[0]!r}; give each a `name` of its own")
