"""`type: mix` in a recipe's `data:`: scenes out of any sounds, with exact questions and answers."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from pal_audio.config import StrictConfig, one_line
from pal_audio.data.balance import check_weights
from pal_audio.data.mixing.augmentation import Augment
from pal_audio.data.mixing.settings import SceneConfig
from pal_audio.data.mixing.sound_sources import ImportedSource, ManifestSource, SoundSource, TableSource
from pal_audio.data.mixing.tasks import TASK_KINDS
from pal_audio.data.sounds import MIN_RATE_HZ
from pal_audio.errors import PalError


class TaskConfig(StrictConfig):
    """A task of a mix. A plain number is its weight.

    Attributes:
        kind: a key of `tasks.TASK_KINDS`; the task's own name where it is left out.
        weight: its share of the items, beside the others'.
        categories: of the sounds that it is about; the kind's own where left out.
        scene: what differs from the mix's `scene`.
    """

    kind: str = ""
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    categories: list[str] = Field(default_factory=list)
    scene: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _plain_weight(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class MixConfig(StrictConfig):
    """What to compose; docs/data.md lists every key.

    Attributes:
        seed: of every choice.
        num_train, num_test: scenes. The first scenes stay the same whatever their number.
        sampling_rate_hz: of the files.
        audio_format: of the files, 16 bit and the same samples either way. WAV is read in less than half of FLAC's time and
            takes 2.3 times the room.
        root: folder that the sources' relative roots count from.
        sources, scene, tasks: see there.
        augment: changes of training sounds; None for none.
        text_only: scenes are told as text (`mixing.telling`) and no sound is composed; the same scenes as with sound.
        more_questions: at most so many further ones about each training scene, of other tasks (`mixing.further`).
    """

    type: Literal["mix"]
    seed: int = Field(default=0, ge=0, lt=2**32)
    num_train: int = Field(default=4000, ge=1)
    num_test: int = Field(default=300, ge=1)
    sampling_rate_hz: int = Field(default=MIN_RATE_HZ, ge=8000, le=48000)
    audio_format: Literal["flac", "wav"] = "flac"
    root: Path | None = None
    sources: list[SoundSource] = Field(min_length=1)
    scene: SceneConfig = Field(default_factory=SceneConfig)
    augment: Augment | None = None
    text_only: bool = False
    more_questions: int = Field(default=0, ge=0, le=20)
    tasks: dict[str, TaskConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> MixConfig:
        check_weights({name: task.weight for name, task in self.tasks.items()})
        for name, task in self.tasks.items():
            if task.weight == 0:
                continue
            task.kind = task.kind or name
            if task.kind not in TASK_KINDS:
                near = difflib.get_close_matches(task.kind, TASK_KINDS, n=1)
                mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASK_KINDS)}"
                raise PalError(f"tasks.{name}: no kind of task is called {task.kind!r}; {mend}")
            task.categories = task.categories or list(TASK_KINDS[task.kind].categories)
            try:
                self._check(task)
            except ValidationError as error:
                raise PalError(f"tasks.{name}.scene: {one_line(error)}") from None
            except PalError as error:
                raise PalError(f"tasks.{name}: {error}") from None
        for key, categories in ({} if self.augment is None else self.augment.named).items():
            self._check_categories(f"augment.{key}", categories)
        if self.text_only and self.more_questions:
            raise PalError("more_questions spare the sound of further scenes, and text_only has none; raise num_train instead")
        if self.sampling_rate_hz < MIN_RATE_HZ and any(source.type == "procedural" for source in self.sources):
            raise PalError(f"sampling_rate_hz: procedural sounds need {MIN_RATE_HZ} or more, got {self.sampling_rate_hz}")
        return self

    def _check_categories(self, where: str, categories: list[str]) -> None:
        """That a source with recordings has each of them."""
        recorded = dict.fromkeys(source.category for source in self.sources if source.type != "procedural")
        for category in categories:
            if category not in recorded:
                procedural = any(source.category == category for source in self.sources)
                why = "its sounds are procedural, which are never changed" if procedural else f"there are {', '.join(recorded)}"
                raise PalError(f"{where}: no source has recordings of the category {category!r}; {why}")

    def _check(self, task: TaskConfig) -> None:
        scene, kind = self.scene_of(task), TASK_KINDS[task.kind]
        known = dict.fromkeys(source.category for source in self.sources)
        behind = [] if scene.background is None else scene.background.categories
        for category in [*task.categories, *behind]:
            if category not in known:
                said = "" if category in task.categories else "background: white, pink, or one of them: "
                raise PalError(f"no source has the category {category!r}; {said}there are {', '.join(known)}")
        shared = [category for category in behind if category in task.categories]
        if shared or (behind and kind.hears_all):
            raise PalError(f"a background of {behind[0]!r} would be one of the sounds that are asked about; take white or pink")
        if kind.digits and len(task.categories) != 1:
            raise PalError(f"it takes one category, not {', '.join(task.categories)}")
        low, high = kind.num_events(scene)
        if high < low:
            raise PalError(f"it needs {low} sounds in a scene, and num_events allows {scene.num_events[1]}")
        if scene.trim is not None and (kind.digits or high > 1):
            raise PalError("scene.trim: the length of a cut scene would tell how many sounds there are; take it out")
        if not kind.digits:
            scene.check_fits(high)
        if task.kind == "background" and (scene.background is None or behind != scene.background.sound or len(behind) != 1):
            raise PalError("it asks about the background: give it `scene: {background: {sound: CATEGORY}}`, one of the sources'")
        if task.kind == "background" and scene.background is not None and scene.background.chance < 1:
            raise PalError("it asks about the background, so its chance must be 1")

    def scene_of(self, task: TaskConfig) -> SceneConfig:
        """The scene of a task: the mix's, with what the task changes."""
        return SceneConfig(**{**self.scene.model_dump(exclude_unset=True), **task.scene})

    @property
    def active_tasks(self) -> dict[str, float]:
        """Weights of the tasks that have one."""
        return {name: task.weight for name, task in self.tasks.items() if task.weight > 0}

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders outside its own that the composed manifests point into: none."""
        return ()

    def resolved(self) -> MixConfig:
        """The same with absolute roots, so that it means the same from every folder."""
        base = (self.root or Path()).resolve()
        copy = self.model_copy(deep=True)
        copy.root = None
        for source in copy.sources:
            if isinstance(source, ManifestSource):
                source.train = (base / source.train).resolve()
                source.test = None if source.test is None else (base / source.test).resolve()
                source.root = None if source.root is None else (base / source.root).resolve()
            elif isinstance(source, ImportedSource | TableSource):
                source.root = (base / source.root).resolve()
        return copy

    def check_places(self) -> None:
        """Raise PalError for the first root or manifest that is not there."""
        for number, source in enumerate(self.resolved().sources):
            place = f"data.sources[{number}]"
            mend = f"name yours with --set data.root=FOLDER or --set data.sources.{number}"
            if isinstance(source, ImportedSource | TableSource) and not source.root.is_dir():
                raise PalError(f"{place}.root: no such folder {source.root}; {mend}.root=FOLDER")
            for name in ("train", "test"):
                path = getattr(source, name, None)
                if path is not None and not path.is_file():
                    raise PalError(f"{place}.{name}: no such manifest {path}; {mend}.{name}=FILE")
