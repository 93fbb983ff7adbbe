"""`sources` of a mix: where its sounds come from, and which of them are for training and which for the test.

sources:
  - {type: esc10, root: esc10}                                     # any importer in `LABELLED`
  - {type: fsdd, root: fsdd, category: digit, hold_out: {speaker: [theo]}}
  - {type: table, root: gm_notes, category: instrument, file: "audio/{filename}", label: instrument, pitch: midi_pitch}
  - {type: manifest, train: a.jsonl, test: b.jsonl, label: kind}
  - {type: procedural}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pal_audio.config import StrictConfig
from pal_audio.data.sounds import KINDS
from pal_audio.errors import PalError

# Importers whose answers are labels or transcripts.
LABELLED = ("csv", "esc10", "esc50", "fsd50k", "fsdd", "librispeech", "vggsound")
Value = str | int | float | bool


class SplitRule(StrictConfig):
    """Which clips of a source train and which test.

    Attributes:
        by: key of a clip's meta whose value says it; "split" is what the set itself says.
        train, test: values of it; a clip with another value is used nowhere. Where both are left out and `by` is "split":
            `train`, and `val` where the set has one, else `test`.
        test_share: instead: this share of the groups tests, chosen by a hash of the group's name.
        group: key of meta; clips with the same value are never divided. Without it each file is a group.
    """

    by: str = "split"
    train: list[Value] = Field(default_factory=list)
    test: list[Value] = Field(default_factory=list)
    test_share: float | None = Field(None, gt=0, lt=1)
    group: str | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> SplitRule:
        if bool(self.train) != bool(self.test):
            raise PalError("split: give values both for `train` and for `test`, or for neither")
        if self.test_share is not None and (self.train or self.by != "split"):
            raise PalError("split: `test_share` takes no `by`, `train` or `test` beside it")
        if self.test_share is None and self.by != "split" and not self.train:
            raise PalError(f"split: say which values of {self.by!r} are `train` and which are `test`")
        both = {str(value) for value in self.train} & {str(value) for value in self.test}
        if both:
            raise PalError(f"split: {self.by} {min(both)!r} is both in `train` and in `test`")
        return self


class BaseSource(StrictConfig):
    """What all sources share.

    Attributes:
        category: what its sounds are; questions are worded by it.
        labels: those to take; all of them where left out.
        nouns, clauses: how a label reads in a question ("a dog") and in a caption ("a dog barks").
        weight: how often it is taken where another source has the same label.
    """

    category: str = Field("sound", pattern=r"^[a-z][a-z_ ]*$")
    labels: list[str] | None = Field(None, min_length=1)
    nouns: dict[str, str] = Field(default_factory=dict)
    clauses: dict[str, str] = Field(default_factory=dict)
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)


class ProceduralSource(BaseSource):
    """The package's own sounds; their parameters are split, see `sounds`."""

    type: Literal["procedural"]

    @property
    def title(self) -> str:
        return self.type


class RecordedSource(BaseSource):
    """Files.

    Attributes:
        label: "answer" (the set's own), or the key of a clip's meta that holds it.
        pitch: key of meta that holds a note's MIDI number.
        speaker: key of meta that names who speaks.
        split: see `SplitRule`.
        hold_out: values by key of meta; such clips are never trained on.
    """

    label: str = "answer"
    pitch: str | None = None
    speaker: str = "speaker"
    split: SplitRule = Field(default_factory=SplitRule)
    hold_out: dict[str, list[Value]] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the ids of its clips begin with."""
        raise NotImplementedError


class ImportedSource(RecordedSource):
    """A set that an importer knows, in its official layout."""

    type: str
    root: Path

    @property
    def title(self) -> str:
        return self.type


class TableSource(RecordedSource):
    """A CSV table with a header: one clip a row, every column is meta.

    Attributes:
        table: its file under `root`.
        file: a clip's file under `root`; {column} stands for a cell.
    """

    type: Literal["table"]
    root: Path
    table: str = "meta.csv"
    file: str = "{path}"
    label: str = "label"

    @property
    def title(self) -> str:
        return self.root.name or "table"


class ManifestSource(RecordedSource):
    """Manifests: each line's one clip, its `meta`, and its answer. They are the split, unless `split` says otherwise.

    Attributes:
        train, test: the files; with `split.by` or `split.test_share`, `train` alone may hold all.
        root: a folder outside a manifest's own that audio may lie in.
    """

    type: Literal["manifest"]
    train: Path
    test: Path | None = None
    root: Path | None = None

    @model_validator(mode="after")
    def _some_test(self) -> ManifestSource:
        rule = self.split
        if self.test is None and rule.by == "split" and rule.test_share is None:
            raise PalError("manifest: name a `test` manifest too, or a `split`")
        return self

    @property
    def title(self) -> str:
        return self.train.stem


def _source_type(values: Any) -> str | None:
    kind = values.get("type") if isinstance(values, dict) else getattr(values, "type", None)
    return "imported" if kind in LABELLED else str(kind)


SoundSource = Annotated[
    Annotated[ProceduralSource, Tag("procedural")]
    | Annotated[ImportedSource, Tag("imported")]
    | Annotated[TableSource, Tag("table")]
    | Annotated[ManifestSource, Tag("manifest")],
    Discriminator(
        _source_type,
        custom_error_type="source_type",
        custom_error_message=f"type must be procedural, table, manifest or one of {', '.join(LABELLED)}",
    ),
]


def procedural_label(kind: str) -> str:
    """What a kind of procedural sound is called as a label: its answer without the article."""
    return KINDS[kind].answer.removeprefix("a ").removeprefix("an ")
