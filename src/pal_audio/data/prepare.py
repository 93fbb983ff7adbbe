"""From a recipe's `data:` to examples, whatever its type: the one way in which training gets its data."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.mix import DataConfig, build, chance, read_mix
from pal_audio.data.sources import ManifestsConfig, Source, SourceConfig, TextConfig
from pal_audio.data.texts import Document, read_documents
from pal_audio.errors import PalError


@dataclass
class Prepared:
    """What a run trains and is tested on.

    Attributes:
        sources: examples of one epoch by source, weights applied; scenes are one source called "scenes".
        test: held-out examples.
        chance: the best accuracy on `test` without listening; see `mix.chance`.
        chance_by_task: the same by task.
    """

    sources: dict[str, list[Example]]
    test: list[Example]
    chance: float
    chance_by_task: dict[str, float]

    def train(self, names: Sequence[str] | None = None) -> list[Example]:
        """Examples of one epoch over the named sources, or over all."""
        return [example for name in (self.sources if names is None else names) for example in self.sources[name]]


def prepare(
    config: DataConfig | ManifestsConfig,
    out: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    answered: bool = True,
) -> Prepared:
    """Compose or read what a recipe's `data:` names.

    Args:
        config: of either type.
        out: where composed scenes go; manifests are read where they are and nothing is written.
        progress: called with what is done and what there is in all.
        answered: refuse an example without an answer to learn.

    Raises:
        PalError: a manifest or a sound file is not there, or an example has no answer to learn.
    """
    if isinstance(config, ManifestsConfig):
        return _read(config, progress, answered)
    train_path, test_path = build(config, out, progress)
    mix = read_mix(out)
    train, test = (read_manifest(path, config.roots) for path in (train_path, test_path))
    return Prepared({"scenes": train}, test, mix.chance, mix.chance_by_task)


def check_places(config: DataConfig | ManifestsConfig) -> None:
    """Say at once, before a run's folder is begun, which manifest or root is not there.

    Raises:
        PalError: the first that is missing, by its place in the recipe.
    """
    if not isinstance(config, ManifestsConfig):
        return
    for place, path in _places(config).items():
        if not path.is_file():
            what = "text" if place.endswith(".text") else "manifest"
            raise PalError(f"{place}: no such {what} {path}; write it there, or name yours with --set {_setting(place)}=FILE")
    for number, root in enumerate(config.roots):
        if not root.is_dir():
            raise PalError(f"data.roots[{number}]: no such folder {root}")


def _places(config: ManifestsConfig) -> dict[str, Path]:
    """Files by their places in the recipe; the place of a text ends in ".text"."""
    places = {}
    for list_name, items in (("train", config.train), ("test", config.test)):
        for number, item in enumerate(items):
            place = f"data.{list_name}[{number}]"
            if isinstance(item, TextConfig):
                places[f"{place}.text"] = item.text
            else:
                places[place] = item.path if isinstance(item, SourceConfig) else item
    return places


def _read(config: ManifestsConfig, progress: Callable[[int, int], None] | None, answered: bool) -> Prepared:
    check_places(config)
    read: list[list[Example]] = []
    items = [*config.train, *config.test]
    for number, (item, path) in enumerate(zip(items, _places(config).values(), strict=True)):
        if isinstance(item, TextConfig):
            read.append([*read_documents(path, item.documents)])
        else:
            read.append(_with_sound(path, config.roots, answered))
        if progress is not None:
            progress(number + 1, len(items))
    sources = {source.title: _weighted(read[number], source, config.seed, number) for number, source in enumerate(config.train)}
    test = [example for examples in read[len(config.train) :] for example in examples]
    train = [example for examples in sources.values() for example in examples]
    asked = [example for example in test if not isinstance(example, Document)]
    by_task = {task: [example for example in asked if example.task == task] for task in sorted({item.task for item in asked})}
    guess = chance(train, asked) if asked else 0.0
    return Prepared(sources, test, guess, {task: chance(train, items) for task, items in by_task.items()})


def _setting(place: str) -> str:
    number = place.partition("[")[2].partition("]")[0]
    if place.endswith(".text"):
        return f"{place.partition('[')[0]}.{number}.text"
    return f"data.train.{number}.path" if ".train" in place else f"data.test.{number}"


def _with_sound(path: Path, roots: Sequence[Path], answered: bool) -> list[Example]:
    """Examples of a manifest, with sound that is there, and with an answer each where that is asked for."""
    examples = read_manifest(path, roots)
    silent = [example.id for example in examples if answered and not example.answer]
    if silent:
        raise PalError(f"{path}: {len(silent)} examples have no answer of the assistant, the first is {silent[0]!r}")
    missing = [name for name in dict.fromkeys(p.path for e in examples for p in e.audio) if not Path(name).is_file()]
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
