"""From a recipe's `data:` to examples, whatever its type: the one way in which training gets its data."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.mix import DataConfig, Guesser, build, read_mix
from pal_audio.data.mixing.config import MixConfig
from pal_audio.data.mixing.telling import as_text
from pal_audio.data.shard_index import find_shards
from pal_audio.data.shard_source import ShardSource, weighted
from pal_audio.data.shards import ShardStream
from pal_audio.data.sources import ManifestConfig, ManifestsConfig, ShardsConfig, Source, TextConfig
from pal_audio.data.texts import Document, read_documents
from pal_audio.errors import PalError

HEAD = 2000  # examples of a stream that are looked at before training


@dataclass
class Prepared:
    """What a run trains and is tested on.

    Attributes:
        sources: examples of one epoch by source, weights applied; scenes are one source called "scenes", a mix's
            further questions one called "more".
        test: held-out examples.
        chance: the best accuracy on `test` without listening; see `mix.chance`.
        chance_by_task: the same by task.
        streams: shards by source; then `sources` is empty, and `chance` is taken from the first `HEAD` examples of each.
        shuffle_buffer: of streams; see `ShardStream`.
    """

    sources: dict[str, list[Example]]
    test: list[Example]
    chance: float
    chance_by_task: dict[str, float]
    streams: dict[str, ShardSource] = field(default_factory=dict)
    shuffle_buffer: int = 0

    def stream(self, names: Sequence[str] | None = None, seed: int = 0) -> ShardStream:
        """A stream over the named sources, or over all. Only where the data are shards."""
        chosen = [self.streams[name] for name in (self.streams if names is None else names)]
        return ShardStream(chosen, seed, self.shuffle_buffer)

    def num_examples(self, names: Sequence[str] | None = None) -> int:
        """Examples of one epoch over the named sources, or over all, streamed or not."""
        return self.stream(names).num_examples if self.streams else len(self.train(names))

    def sample(self) -> list[Example]:
        """Training examples to look at and to make a vocabulary from: all, or of each stream the first `HEAD`, without sound."""
        return [example for source in self.streams.values() for example in source.head(HEAD)] or self.train()

    def train(self, names: Sequence[str] | None = None) -> list[Example]:
        """Examples of one epoch over the named sources, or over all. A name that is no source is a task of composed scenes."""
        chosen = self.sources if names is None else names
        return [example for name in chosen for example in self.sources.get(name) or self._of_task(name)]

    def _of_task(self, task: str) -> list[Example]:
        return [example for examples in self.sources.values() for example in examples if example.task == task]


def prepare(
    config: DataConfig | MixConfig | ManifestsConfig | ShardsConfig,
    out: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    answered: bool = True,
    workers: int | None = None,
) -> Prepared:
    """Compose or read what a recipe's `data:` names.

    Args:
        config: of any type.
        out: where composed scenes go; manifests and shards are read where they are and nothing is written.
        progress: called with what is done and what there is in all.
        answered: refuse an example without an answer to learn.
        workers: processes that compose scenes; None: one a core.

    Raises:
        PalError: a manifest, a shard or a sound file is not there, or an example has no answer to learn.
    """
    if isinstance(config, ShardsConfig):
        return _found(config, progress)
    if isinstance(config, ManifestsConfig):
        return _read(config, progress, answered)
    paths = build(config, out, progress, workers)
    mix = read_mix(out)
    train, test, *more = (read_manifest(path, config.roots) for path in paths)
    return Prepared({"scenes": train} | ({"more": more[0]} if more else {}), test, mix.chance, mix.chance_by_task)


def check_places(config: DataConfig | MixConfig | ManifestsConfig | ShardsConfig) -> None:
    """Say at once, before a run's folder is begun, which manifest, root, source or local folder of shards is not there.

    Raises:
        PalError: the first that is missing, by its place in the recipe.
    """
    if isinstance(config, MixConfig):
        config.check_places()
    if not isinstance(config, ManifestsConfig | ShardsConfig):
        return
    for number, where in enumerate(source.shards for source in config.train) if isinstance(config, ShardsConfig) else ():
        if not any(mark in where for mark in ("://", *"*?[")) and not Path(where).exists():
            raise PalError(f"data.train[{number}]: no such folder {where}; write it by `pal data shard`")
    for place, path in places_of(config).items():
        if not path.is_file():
            what = "text" if place.endswith(".text") else "manifest"
            raise PalError(f"{place}: no such {what} {path}; write it there, or name yours with --set {_setting(place)}=FILE")
    for number, root in enumerate(config.roots):
        if not root.is_dir():
            raise PalError(f"data.roots[{number}]: no such folder {root}")


def places_of(config: ManifestsConfig | ShardsConfig) -> dict[str, Path]:
    """Files by their places in the recipe; the place of a text ends in ".text"."""
    places: dict[str, Path] = {}
    train = config.train if isinstance(config, ManifestsConfig) else []
    for list_name, items in (("train", train), ("test", config.test)):
        for number, item in enumerate(items):
            place = f"data.{list_name}[{number}]"
            if isinstance(item, TextConfig):
                places[f"{place}.text"] = item.text
            else:
                places[place] = item.path if isinstance(item, ManifestConfig) else item
    return places


def _read(config: ManifestsConfig, progress: Callable[[int, int], None] | None, answered: bool) -> Prepared:
    check_places(config)
    read: list[list[Example]] = []
    items = [*config.train, *config.test]
    for number, (item, path) in enumerate(zip(items, places_of(config).values(), strict=True)):
        if isinstance(item, TextConfig):
            read.append([*read_documents(path, item.documents)])
        else:
            read.append(_with_sound(item, config.roots, answered))
        if progress is not None:
            progress(number + 1, len(items))
    sources = {source.title: _weighted(read[number], source, config.seed, number) for number, source in enumerate(config.train)}
    test = [example for examples in read[len(config.train) :] for example in examples]
    train = [example for examples in sources.values() for example in examples]
    return Prepared(sources, test, *_chances(train, test))


def _found(config: ShardsConfig, progress: Callable[[int, int], None] | None) -> Prepared:
    check_places(config)
    test = [example for path in config.test for example in _with_sound(ManifestConfig(path=path), config.roots, answered=True)]
    streams: dict[str, ShardSource] = {}
    source_of: dict[str, str] = {}
    for number, source in enumerate(config.train):
        shards = find_shards(source.shards)
        for shard in shards:
            if source_of.setdefault(shard.path, source.title) != source.title:
                raise PalError(f"data.train[{number}]: {shard.path} belongs to {source_of[shard.path]!r} already; use `weight`")
        try:
            visits = weighted(shards, source.weight, np.random.default_rng([5, config.seed, number]))
        except PalError as error:
            raise PalError(f"data.train[{number}]: {error}") from error
        streams[source.title] = ShardSource(source.title, visits, source.question)
        if progress is not None:
            progress(number + 1, len(config.train))
    data = Prepared({}, test, 0.0, {}, streams, config.shuffle_buffer)
    data.chance, data.chance_by_task = _chances(data.sample(), test)
    return data


def _chances(train: Sequence[Example], test: Sequence[Example]) -> tuple[float, dict[str, float]]:
    """What guessing gets, of all questions and of each task; texts are no questions."""
    asked = [example for example in test if not isinstance(example, Document)]
    by_task = {task: [example for example in asked if example.task == task] for task in sorted({item.task for item in asked})}
    guesser = Guesser(train)
    return guesser.chance(asked) if asked else 0.0, {task: guesser.chance(items) for task, items in by_task.items()}


def _setting(place: str) -> str:
    number = place.partition("[")[2].partition("]")[0]
    if place.endswith(".text"):
        return f"{place.partition('[')[0]}.{number}.text"
    return f"data.train.{number}.path" if ".train" in place else f"data.test.{number}"


def _with_sound(manifest: ManifestConfig, roots: Sequence[Path], answered: bool) -> list[Example]:
    """Examples of a manifest, with sound that is there or as text, and with an answer each where that is asked for."""
    path = manifest.path
    examples = read_manifest(path, roots)[: manifest.first]
    if manifest.as_text:
        try:
            examples = [as_text(example) for example in examples]
        except PalError as error:
            raise PalError(f"{path}: {error}") from None
    silent = [example.id for example in examples if answered and not example.answer]
    if silent:
        raise PalError(f"{path}: {len(silent)} examples have no answer of the assistant, the first is {silent[0]!r}")
    missing = [name for name in dict.fromkeys(p.path for e in examples for p in e.audio) if not os.path.isfile(name)]
    if missing:
        raise PalError(f"{path}: {len(missing)} sound files are not there, the first is {missing[0]}")
    return examples


def _weighted(examples: list[Example], source: Source, seed: int, number: int) -> list[Example]:
    """Every example as often as the whole part of the weight says, and a fixed choice of them once more for its fraction."""
    times, extra = int(source.weight), round((source.weight % 1) * len(examples))
    chosen = np.random.default_rng([5, seed, number]).permutation(len(examples))[:extra]
    weighted = examples * times + [examples[index] for index in sorted(int(index) for index in chosen)]
    if not weighted:
        raise PalError(f"data.train[{number}]: weight {source.weight:g} leaves none of {len(examples)} examples")
    return weighted
