"""`type: manifests` in a recipe's `data:`: one's own examples, from one manifest or several with weights.

data:
  type: manifests
  train: [{path: a.jsonl}, {path: b.jsonl, weight: 0.5, name: open}, {text: book.txt, documents: file}]
  test: [held_out.jsonl, {text: held_out.txt}]
  roots: [/where/the/sound/lies]
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from pal_audio.config import StrictConfig
from pal_audio.data.texts import Documents
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
HeldOut = Annotated[Annotated[Path, Tag("manifest")] | Annotated[TextConfig, Tag("text")], Discriminator(_kind)]


class ManifestsConfig(StrictConfig):
    """Manifests to train and to be tested on.

    Attributes:
        train: see `SourceConfig` (a plain path is one too) and `TextSourceConfig`.
        test: manifests of held-out examples, and texts (`TextConfig`).
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
        names = [source.title for source in train]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise PalError(f"two sources are called {twice[0]!r}; give each a `name` of its own")
        return train
