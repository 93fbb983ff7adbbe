"""The `data:` part of a recipe, and the folder that is made of it.

    OUT/train.jsonl, OUT/test.jsonl      manifests
    OUT/audio/{train,test}/000000.flac   composed scenes, 16 bit (none for real recordings: the manifests point at the originals)
    OUT/mix.json                         config, counts and chance; written last, so it says that the folder is whole
    OUT/mix.partial.json                 the config while the work lasts

After a kill, `build` finds the unfinished folder of its own config and makes it again from the start.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from pydantic import Field, field_validator, model_validator

from pal_audio.config import StrictConfig
from pal_audio.data.folder import locked
from pal_audio.data.importers.recordings import RECORDING_TASKS, Recording
from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, write_manifest, write_text
from pal_audio.data.scenes import DEFAULT_TASKS, SCENE_TASKS, SceneSettings, check_weights, scene
from pal_audio.data.sounds import Split
from pal_audio.data.sources import ManifestsConfig, ShardsConfig
from pal_audio.errors import PalError

FORMAT = 1  # to be raised whenever the same config would give other bytes
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


class Mix(StrictConfig):
    """What `mix.json` holds: the resolved config, examples by split and task, and what guessing gets."""

    format: int
    config: DataConfig
    num_examples: dict[str, dict[str, int]]
    chance: float
    chance_by_task: dict[str, float]


def chance(train: Sequence[Example], test: Sequence[Example]) -> float:
    """Best accuracy on `test` without listening: the larger of two guessers.

    One answers each question with its most frequent answer in `train` (the task's, where the wording is new). The other is told
    the most frequent answer of each task in `test` itself.
    """
    trained: dict[str, Counter[str | None]] = defaultdict(Counter)  # by question, and by task
    told: dict[str, Counter[str | None]] = defaultdict(Counter)  # by task
    for example in train:
        trained[example.question][example.answer] += 1
        trained[f"task {example.task}"][example.answer] += 1
    right = 0
    for example in test:
        told[example.task][example.answer] += 1
        seen = trained.get(example.question) or trained.get(f"task {example.task}")
        right += seen is not None and seen.most_common(1)[0][0] == example.answer
    return max(right, sum(max(answers.values()) for answers in told.values())) / len(test)


def build(
    config: DataConfig | ManifestsConfig | ShardsConfig,
    out: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    workers: int = 2,
) -> tuple[Path, Path]:
    """Make the folder of a config, or take it as it is when it is there and finished.

    Args:
        config: What to make.
        out: New or empty folder, or one that a build of the same config began or finished.
        progress: Called with scenes done and scenes in all.
        workers: Processes; with 1 all is done in this one. The bytes do not depend on it.

    Returns:
        Paths of the train and the test manifest; read them with `read_manifest(path, config.roots)`.

    Raises:
        PalError: The folder holds something else, `config.root` lacks the recordings, or there is nothing to make.
    """
    if isinstance(config, ManifestsConfig | ShardsConfig):
        raise PalError(f"data: type {config.type} names what is there already; there is nothing to compose")
    if config.root is not None:
        config = config.model_copy(update={"root": config.root.resolve()})
        idle = config.model_fields_set & SceneSettings.model_fields.keys() - {"tasks"}
        if idle:
            warnings.warn(f"with data.root these have no effect: {', '.join(sorted(idle))}", stacklevel=2)
    folder = Path(out)
    manifests = folder / "train.jsonl", folder / "test.jsonl"
    described = {"format": FORMAT, "config": config.model_dump(mode="json")}
    if _finished(folder, described):
        return manifests
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        write_text(folder / "mix.partial.json", json.dumps(described, indent=2) + "\n")
        (folder / "mix.json").unlink(missing_ok=True)
        if config.root is None:
            examples = _composed(config, folder, progress, workers)
        else:
            examples = {split: _recorded(config, config.root, split) for split in _SPLITS}
        for path, split in zip(manifests, _SPLITS, strict=True):
            write_manifest(path, examples[split])
        by_task = {name: [_of_task(examples[split], name) for split in _SPLITS] for name in config.active_tasks}
        mix = Mix(
            **described,
            num_examples={split: dict(Counter(example.task for example in examples[split])) for split in _SPLITS},
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


def _finished(folder: Path, described: dict[str, Any]) -> bool:
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
        keys = [key for key, value in described["config"].items() if there["config"].get(key) != value]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PalError(f"{marks[0]} cannot be read; choose a new folder or delete this one") from error
    if there.get("format") != described["format"]:
        raise PalError(f"{folder} was made by another version of this package; choose a new folder or delete this one")
    if keys:
        raise PalError(
            f"{folder} holds a mix of another config ({', '.join(keys)} differ); choose a new folder or delete this one"
        )
    if marks[0].name != "mix.json":
        return False
    num_files = {split: len(list((folder / "audio" / split).glob("*.flac"))) for split in _SPLITS}
    config = described["config"]
    whole = config["root"] is not None or num_files == {split: config[f"num_{split}"] for split in _SPLITS}
    return whole and all((folder / f"{split}.jsonl").is_file() for split in _SPLITS)


def _composed(
    config: DataConfig, folder: Path, progress: Callable[[int, int], None] | None, workers: int
) -> dict[str, list[Example]]:
    chunks: list[tuple[Split, range]] = []
    for split in _SPLITS:
        (folder / "audio" / split).mkdir(parents=True, exist_ok=True)
        num = config.num_train if split == "train" else config.num_test
        chunks += [(split, range(start, min(start + _CHUNK, num))) for start in range(0, num, _CHUNK)]
    num_done, num_all = 0, config.num_train + config.num_test
    made: dict[tuple[Split, range], list[Example]] = {}
    for chunk, examples in _in_processes(config, folder, chunks, workers):
        made[chunk] = examples
        num_done += len(examples)
        if progress is not None:
            progress(num_done, num_all)
    return {split: [example for chunk in chunks if chunk[0] == split for example in made[chunk]] for split in _SPLITS}


def _in_processes(
    config: DataConfig, folder: Path, chunks: list[tuple[Split, range]], workers: int
) -> Iterator[tuple[tuple[Split, range], list[Example]]]:
    """Yield chunks with their examples as they get done. Few chunks are not worth the start of a process."""
    if workers <= 1 or len(chunks) <= 4:
        for chunk in chunks:
            yield chunk, _compose_chunk(config, folder, *chunk)
        return
    # Spawned, not forked: the caller may hold threads of torch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        chunk_of = {pool.submit(_compose_chunk, config, folder, *chunk): chunk for chunk in chunks}
        for future in as_completed(chunk_of):
            yield chunk_of[future], future.result()
    except BrokenProcessPool as error:
        raise PalError(
            "a composing process died; a script must call build() under `if __name__ == '__main__':`, or pass workers=1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed; left alone it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compose_chunk(config: DataConfig, folder: Path, split: Split, indices: range) -> list[Example]:
    settings = config.scene_settings()
    examples = []
    for index in indices:
        item = scene(config.seed, split, index, settings)
        name = f"audio/{split}/{index:06d}.flac"
        encoded = io.BytesIO()  # one write a file: many small ones are several times slower on some file systems
        soundfile.write(encoded, item.wav_S, settings.sampling_rate_hz, subtype="PCM_16", format="FLAC")
        (folder / name).write_bytes(encoded.getvalue())
        events = [{"kind": e.kind, "start_s": round(e.start_s, 4), "end_s": round(e.end_s, 4)} for e in item.events]
        examples.append(
            Example(
                id=f"{split}-{index:06d}",
                messages=[
                    Message(role="user", content=[AudioPart(path=name), TextPart(text=item.question)]),
                    Message(role="assistant", content=item.answer),
                ],
                task=item.task,
                meta={"events": events},
            )
        )
    return examples


def _recorded(config: DataConfig, root: Path, split: Split) -> list[Example]:
    """Take recordings by the tasks' weights, classes in turn: `train` goes round them, `test` takes each at most once."""
    num = config.num_train if split == "train" else config.num_test
    bounds = np.rint(np.cumsum([0.0, *config.active_tasks.values()]) / sum(config.active_tasks.values()) * num).astype(int)
    examples = []
    for number, task in enumerate(config.active_tasks):
        rng = np.random.default_rng([3, config.seed, _SPLITS.index(split), number])
        ranked = _classes_in_turn(RECORDING_TASKS[task](root, split), rng)
        quota = int(bounds[number + 1] - bounds[number])
        for i in range(quota if split == "train" else min(quota, len(ranked))):
            recording, rank = ranked[i % len(ranked)]
            examples.append(recording.example(rank + i // len(ranked)))
    return examples


def _classes_in_turn(recordings: Sequence[Recording], rng: np.random.Generator) -> list[tuple[Recording, int]]:
    """Shuffle, then order by each recording's number within its class, which is given with it."""
    ranked: list[tuple[Recording, int]] = []
    seen: Counter[str] = Counter()
    for i in rng.permutation(len(recordings)):
        recording = recordings[int(i)]
        ranked.append((recording, seen[recording.answer]))
        seen[recording.answer] += 1
    return sorted(ranked, key=lambda pair: pair[1])
