"""The `data:` part of a recipe, and the folder that is made of it.

    OUT/train.jsonl, OUT/test.jsonl      manifests
    OUT/more.jsonl                       of a mix with `more_questions`: further questions about the training scenes
    OUT/audio/{train,test}/000000.flac   composed scenes, 16 bit (none for real recordings: the manifests point at the originals);
                                         of a mix in folders of 5,000: 000/000000.flac, or .wav
    OUT/clips.json                       of a mix: the clips of each split by id
    OUT/mix.json                         config, counts and chance; written last, so it says that the folder is whole
    OUT/mix.partial.json                 the config while the work lasts

After a kill, `build` finds the unfinished folder of its own config and makes it again from the start.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from pal_audio.config import StrictConfig
from pal_audio.data.balance import check_weights
from pal_audio.data.cores import num_cores
from pal_audio.data.folder import locked
from pal_audio.data.importers.recordings import RECORDING_TASKS
from pal_audio.data.manifest import Example, write_manifest, write_text
from pal_audio.data.mixing.compose import Composer
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.mixing.further import check_further, further
from pal_audio.data.mixing.reading import read_catalogue
from pal_audio.data.pool import in_processes
from pal_audio.data.scene_files import Chunk, recorded, write_mix, write_scenes
from pal_audio.data.scenes import DEFAULT_TASKS, SCENE_TASKS, SceneSettings
from pal_audio.data.sounds import Split
from pal_audio.data.sources import ManifestsConfig, ShardsConfig
from pal_audio.errors import PalError

FORMAT = 2  # to be raised whenever the same config would give other bytes
DEFAULT_RECORDING_TASKS = {"esc10": 0.5, "digits": 0.5}
_CHUNK = 50  # scenes a worker composes before it reports
_SPLITS: tuple[Split, Split] = ("train", "test")


class DataConfig(SceneSettings):
    """What to train and test on: composed scenes, or with `root` real recordings.

    `tasks` maps task to weight: of scenes (`classify`, `first`, `last`, `count`, `presence`), or with `root` of recordings
    (`esc10`, `esc50`, `digits`). One mapping may hold both kinds: those of the source in use count.
    With `root`, `num_train` examples go round the recordings with changing wordings, and `num_test` takes each at most once.
    """

    type: Literal["scenes"] = "scenes"
    seed: int = Field(default=0, ge=0, lt=2**32)
    num_train: int = Field(default=4000, ge=1)
    num_test: int = Field(default=300, ge=1)
    tasks: dict[str, float] = Field(default_factory=lambda: DEFAULT_TASKS | DEFAULT_RECORDING_TASKS)
    root: Path | None = None

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, tasks: dict[str, float]) -> dict[str, float]:
        known = (*SCENE_TASKS, *RECORDING_TASKS)
        unknown = [name for name in tasks if name not in known]
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r}; known are {', '.join(known)}")
        return tasks

    @model_validator(mode="after")
    def _some_task(self) -> DataConfig:
        if not self.active_tasks:
            source, known = ("scenes", SCENE_TASKS) if self.root is None else ("recordings", tuple(RECORDING_TASKS))
            raise ValueError(f"tasks {self.tasks} names none of {source}: {', '.join(known)}")
        check_weights(self.active_tasks)
        return self

    @property
    def active_tasks(self) -> dict[str, float]:
        """Weights of the tasks that belong to the source in use."""
        known: Sequence[str] = SCENE_TASKS if self.root is None else tuple(RECORDING_TASKS)
        return {name: weight for name, weight in self.tasks.items() if name in known and weight != 0}

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders that the manifests may point into: what `read_manifest` takes as `roots`."""
        return () if self.root is None else (self.root,)

    def scene_settings(self) -> SceneSettings:
        """The part that composes scenes."""
        shared = {name: getattr(self, name) for name in SceneSettings.model_fields}
        return SceneSettings(**shared | {"tasks": self.active_tasks})


_Config = Annotated[DataConfig | MixConfig, Field(discriminator="type")]
_CONFIG: TypeAdapter[DataConfig | MixConfig] = TypeAdapter(_Config)
"""Reads what a folder was made by; keys that there were not yet have their defaults."""


class Mix(StrictConfig):
    """What `mix.json` holds: the resolved config, examples by split (and `more`) and task, and what guessing gets."""

    format: int
    config: _Config
    num_examples: dict[str, dict[str, int]]
    chance: float
    chance_by_task: dict[str, float]


def chance(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Best accuracy on `test` without listening; see `Guesser`."""
    return Guesser(train).chance(test)


class Guesser:
    """Answers without listening: each question by its most frequent answer in `train` (the task's, where the wording is new)."""

    def __init__(self, train: Sequence[Example]) -> None:
        counted: dict[str, Counter[str | None]] = defaultdict(Counter)  # by question, and by task
        for example in train:
            answer = example.answer
            counted[example.question][answer] += 1
            counted[f"task {example.task}"][answer] += 1
        self._best = {question: answers.most_common(1)[0][0] for question, answers in counted.items()}

    def chance(self, test: Sequence[Example]) -> float:
        """Best accuracy on `test`: this guesser's, or that of one who is told the most frequent answer of each task in it."""
        told: dict[str, Counter[str | None]] = defaultdict(Counter)  # by task
        right = 0
        for example in test:
            question, task, answer = example.question, f"task {example.task}", example.answer
            told[task][answer] += 1
            known = question if question in self._best else task
            right += known in self._best and self._best[known] == answer
        return max(right, sum(max(answers.values()) for answers in told.values())) / len(test)


def build(
    config: DataConfig | MixConfig | ManifestsConfig | ShardsConfig,
    out: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> tuple[Path, ...]:
    """Make the folder of a config, or take it as it is when it is there and finished.

    Args:
        config: What to make.
        out: New or empty folder, or one that a build of the same config began or finished.
        progress: Called with scenes done and scenes in all.
        workers: Processes; with 0 or 1 all is done in this one; None: one a core. The bytes do not depend on it.

    Returns:
        Paths of the train and the test manifest, and of further questions where the config asks for `more_questions`; read them
        with `read_manifest(path, config.roots)`.

    Raises:
        PalError: The folder holds something else, `config.root` lacks the recordings, or there is nothing to make.
    """
    if isinstance(config, ManifestsConfig | ShardsConfig):
        raise PalError(f"data: type {config.type} names what is there already; there is nothing to compose")
    if isinstance(config, MixConfig):
        config = config.resolved()
    elif config.root is not None:
        config = config.model_copy(update={"root": config.root.resolve()})
        idle = config.model_fields_set & SceneSettings.model_fields.keys() - {"tasks"}
        if idle:
            warnings.warn(f"with data.root these have no effect: {', '.join(sorted(idle))}", stacklevel=2)
    folder = Path(out)
    manifests: tuple[Path, ...] = folder / "train.jsonl", folder / "test.jsonl"
    if isinstance(config, MixConfig) and config.more_questions:
        manifests = *manifests, folder / "more.jsonl"
    described: dict[str, Any] = {"format": FORMAT, "config": config.model_dump(mode="json")}
    if _finished(folder, described, manifests):
        return manifests
    composer = Composer(config, read_catalogue(config)) if isinstance(config, MixConfig) else None  # says what is wrong at once
    if composer is not None:
        check_further(composer)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        write_text(folder / "mix.partial.json", json.dumps(described, indent=2) + "\n")
        (folder / "mix.json").unlink(missing_ok=True)
        if composer is not None:
            catalogue = {split: sorted(clip.id for clip in composer.catalogue.clips[split]) for split in _SPLITS}
            write_text(folder / "clips.json", json.dumps(catalogue, indent=1) + "\n")
            examples = _composed(config, folder, write_mix, (composer, folder), progress, workers)
        elif isinstance(config, DataConfig) and config.root is not None:
            tasks, root = config.active_tasks, config.root
            examples = {split: recorded(tasks, _num(config, split), config.seed, root, split) for split in _SPLITS}
        else:
            assert isinstance(config, DataConfig)
            shared = (config.seed, config.scene_settings(), folder)
            examples = _composed(config, folder, write_scenes, shared, progress, workers)
        named: dict[str, list[Example]] = {split: examples[split] for split in _SPLITS}
        if composer is not None and composer.config.more_questions:
            named["more"] = list(further(composer, examples["train"]))
        for path, found in zip(manifests, named.values(), strict=True):
            write_manifest(path, found)
        by_task = {name: [_of_task(examples[split], name) for split in _SPLITS] for name in config.active_tasks}
        mix = Mix(
            **described,
            num_examples={split: dict(Counter(example.task for example in found)) for split, found in named.items()},
            chance=chance(examples["train"], examples["test"]),
            chance_by_task={name: chance(train, test) for name, (train, test) in by_task.items() if test},
        )
        write_text(folder / "mix.json", mix.model_dump_json(indent=2) + "\n")
        (folder / "mix.partial.json").unlink()
    return manifests


def read_mix(out: str | os.PathLike[str]) -> Mix:
    """Read what `build` noted about a finished folder."""
    path = Path(out) / "mix.json"
    if not path.is_file():
        raise PalError(f"{out}: no finished mix here (mix.json is missing)")
    return Mix.model_validate_json(path.read_text(encoding="utf-8"))


def _of_task(examples: Sequence[Example], task: str) -> list[Example]:
    return [example for example in examples if example.task == task]


def _finished(folder: Path, described: dict[str, Any], manifests: Sequence[Path]) -> bool:
    """Say whether the folder holds exactly this, whole. A folder that holds anything else is refused."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise PalError(f"{folder} is not a folder")
    marks = [folder / name for name in ("mix.json", "mix.partial.json") if (folder / name).is_file()]
    if not marks:
        if any(entry.name not in (".lock", ".mix.partial.json.tmp") for entry in folder.iterdir()):
            raise PalError(f"{folder} is not empty and holds no mix; choose a new folder")
        return False
    try:
        there = json.loads(marks[0].read_text(encoding="utf-8"))
        is_of_this_version = there.get("format") == described["format"]
        told = _CONFIG.validate_python(there["config"]).model_dump(mode="json") if is_of_this_version else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PalError(f"{marks[0]} cannot be read; choose a new folder or delete this one") from error
    if not is_of_this_version:
        raise PalError(f"{folder} was made by another version of this package; choose a new folder or delete this one")
    if keys := [key for key, value in described["config"].items() if told.get(key) != value]:
        raise PalError(
            f"{folder} holds a mix of another config ({', '.join(keys)} differ); choose a new folder or delete this one"
        )
    if marks[0].name != "mix.json":
        return False
    config = described["config"]
    files = f"*.{config.get('audio_format', 'flac')}"
    num_files = {split: len(list((folder / "audio" / split).rglob(files))) for split in _SPLITS}
    has_no_files = config["root"] is not None or bool(config.get("text_only"))
    whole = has_no_files or num_files == {split: config[f"num_{split}"] for split in _SPLITS}
    return whole and all(path.is_file() for path in manifests)


def _num(config: DataConfig | MixConfig, split: Split) -> int:
    return config.num_train if split == "train" else config.num_test


def _composed(
    config: DataConfig | MixConfig,
    folder: Path,
    write: Callable[[Any, Chunk], list[Example]],
    shared: Any,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> dict[Split, list[Example]]:
    """Examples by split, written by chunks in any order."""
    chunks: list[Chunk] = []
    for split in _SPLITS:
        num = _num(config, split)
        chunks += [(split, range(start, min(start + _CHUNK, num))) for start in range(0, num, _CHUNK)]
    num_done, num_all = 0, config.num_train + config.num_test
    made: dict[Chunk, list[Example]] = {}
    for chunk, examples in in_processes(write, shared, chunks, num_cores() if workers is None else workers):
        made[chunk] = examples
        num_done += len(examples)
        if progress is not None:
            progress(num_done, num_all)
    return {split: [example for chunk in chunks if chunk[0] == split for example in made[chunk]] for split in _SPLITS}
