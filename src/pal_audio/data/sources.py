"""`type: manifests` and `type: shards` in a recipe's `data:`: one's own examples, of one source or several with weights.

data:
  type: manifests
  train: [{path: a.jsonl}, {path: b.jsonl, weight: 0.5, name: open}, {text: book.txt, documents: file}]
  test: [held_out.jsonl, {path: scenes/test.jsonl, first: 500}, {text: held_out.txt}]
  roots: [/where/the/sound/lies]

data:
  type: shards
  train: [{shards: a}, {shards: "hf://datasets/someone/sounds/*.tar", name: hub, question: What do you hear?}]
  test: [held_out.jsonl]
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pal_audio.config import StrictConfig
from pal_audio.data.texts import Documents
from pal_audio.errors import PalError


class ManifestConfig(StrictConfig):
    """A manifest.

    Attributes:
        path: of the manifest, from the folder in which the command runs.
        first: so many examples of it, from its beginning; all where it is left out.
        as_text: of scenes of `type: mix`: their clips are told as text, see `mixing.telling`; no sound is read.
    """

    path: Path
    first: int | None = Field(default=None, ge=1)
    as_text: bool = False

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value


class SourceConfig(ManifestConfig):
    """A manifest to train on.

    Attributes:
        weight: how often each example counts in an epoch. 2 means twice; 0.5 means a half of them, chosen by the seed, and
            always the same half.
        name: what a stage's `sources` calls it; the file's name without its ending where it is left out.
    """

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.path.stem


class TextConfig(StrictConfig):
    """A file of plain text to be tested on; see `data.texts`.

    Attributes:
        text: `.jsonl` with "text" in each line, or UTF-8 text.
        documents: what a document is in UTF-8 text: each of its `lines`, or the whole `file`.
    """

    text: Path
    documents: Documents = "lines"


class TextSourceConfig(TextConfig):
    """A file of plain text to train on; `weight` and `name` are those of `SourceConfig`."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or self.text.stem


def _kind(value: Any) -> str:
    return "text" if isinstance(value, TextConfig) or (isinstance(value, dict) and "text" in value) else "manifest"


Source = Annotated[Annotated[SourceConfig, Tag("manifest")] | Annotated[TextSourceConfig, Tag("text")], Discriminator(_kind)]
HeldOut = Annotated[Annotated[ManifestConfig, Tag("manifest")] | Annotated[TextConfig, Tag("text")], Discriminator(_kind)]


class ManifestsConfig(StrictConfig):
    """Manifests to train and to be tested on.

    Attributes:
        train: see `SourceConfig` (a plain path is one too) and `TextSourceConfig`.
        test: manifests of held-out examples (`ManifestConfig`; a plain path is one), and texts (`TextConfig`).
        roots: folders outside a manifest's own that its sound may lie in.
        seed: of the choice that weights below 1 make.
    """

    type: Literal["manifests"] = "manifests"
    train: list[Source] = Field(min_length=1)
    test: list[HeldOut] = Field(min_length=1)
    roots: list[Path] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @field_validator("train")
    @classmethod
    def _distinct_names(cls, train: list[Source]) -> list[Source]:
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


def check_names(train: Sequence[SourceConfig | TextSourceConfig | ShardsSourceConfig]) -> None:
    """That a stage can tell its sources apart.

    Raises:
        PalError: two have one name.
    """
    names = [source.title for source in train]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PalError(f"two sources are called {twice[0]!r}; give each a `name` of its own")
