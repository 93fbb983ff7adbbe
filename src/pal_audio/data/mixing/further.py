"""Further questions about scenes that were composed for one.

A scene of three sounds can be asked what comes first, what follows what, how many there are. Its sound is composed and encoded
once, and who learns from it has several questions to answer instead of one answer to remember.

A task may ask about another's scenes where these are such as it might have had itself: of the same categories, with as many
sounds (fewer at least than its own are left out, so that answers are as even as over its own; captions need not be), and with
the same kinds of background.
Source: our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart
from pal_audio.data.mixing.captions import caption
from pal_audio.data.mixing.compose import Composer
from pal_audio.data.mixing.settings import SceneConfig
from pal_audio.data.mixing.sounding import Sounding, sounding
from pal_audio.data.mixing.tasks import TASK_KINDS, Draws
from pal_audio.errors import PalError

_FURTHER = 27  # what a generator is for; those of `compose` are lower


def further(composer: Composer, examples: Sequence[Example]) -> Iterator[Example]:
    """Yield up to `more_questions` further examples about each training scene, of different tasks drawn by their weights.

    Args:
        composer: of the mix.
        examples: what `pal data mix` wrote of the scenes, from the first on.
    """
    askable = {host: _askable(composer, host) for host in composer.tasks}
    for index, example in enumerate(examples):
        if askable[example.task]:
            yield from _about(composer, example, index, askable[example.task])


def _about(composer: Composer, example: Example, index: int, names: list[str]) -> Iterator[Example]:
    """Further examples about one scene, of some of these tasks."""
    config, sounds = composer.config, [one for one in sounding(example) if not one.behind]
    rng = np.random.default_rng([_FURTHER, config.seed, index])
    weights = np.array([config.tasks[name].weight for name in names])
    chosen = rng.choice(len(names), min(config.more_questions, len(names)), replace=False, p=weights / weights.sum())
    for number, place in enumerate(chosen.tolist()):
        name = names[place]
        categories, kind = config.tasks[name].categories, TASK_KINDS[config.tasks[name].kind]
        fewest, _ = kind.num_events(composer.scenes[name])
        if len(sounds) < fewest:  # chosen all the same: else scenes of one sound were asked for their number more often
            continue
        ask = kind.ask
        assert ask is not None
        draws = Draws(rng, composer.catalogue, "train", categories, composer.scenes[name])
        question, answer = ask(draws, [one.label for one in sounds])
        if answer is None:
            answer = caption(_groups(sounds), composer.catalogue.clauses_of(categories))
        messages = [
            Message(role="user", content=[AudioPart(path=example.audio[0].path), TextPart(text=question)]),
            Message(role="assistant", content=answer),
        ]
        yield Example(id=f"{example.id}-{number + 1}", messages=messages, task=name, meta=example.meta)


def check_further(composer: Composer) -> None:
    """Raise PalError where `more_questions` of the mix could ask none."""
    if composer.config.more_questions and not any(_askable(composer, host) for host in composer.tasks):
        kinds = ", ".join(name for name, kind in TASK_KINDS.items() if kind.ask is not None)
        raise PalError(
            f"more_questions: no task may ask about another's scenes ({kinds} may, of like categories, sounds, background)"
        )


def _askable(composer: Composer, host: str) -> list[str]:
    """Tasks that may ask about the scenes of another, one of each kind."""
    config = composer.config
    task, scene, kind = config.tasks[host], composer.scenes[host], TASK_KINDS[config.tasks[host].kind]
    if kind.digits or kind.compares_notes:
        return []
    least, most = kind.num_events(scene)
    found: dict[str, str] = {}
    for name in composer.tasks:
        asked, other = config.tasks[name], TASK_KINDS[config.tasks[name].kind]
        if other.ask is None or asked.kind == task.kind or task.kind in other.tells:
            continue
        fewest, largest = other.num_events(composer.scenes[name])
        is_alike = set(asked.categories) == set(task.categories) and _behind(scene) == _behind(composer.scenes[name])
        if is_alike and most == largest and (least <= fewest or not other.chooses):
            found.setdefault(asked.kind, name)
    return list(found.values())


def _behind(scene: SceneConfig) -> set[str]:
    return set() if scene.background is None else set(scene.background.categories)


def _groups(sounds: list[Sounding]) -> list[list[str]]:
    """Labels of sounds, two together where the second begins before the first ends."""
    groups: list[list[Sounding]] = []
    for one in sounds:
        if groups and len(groups[-1]) == 1 and one.onset_s < groups[-1][0].offset_s:
            groups[-1].append(one)
        else:
            groups.append([one])
    return [[one.label for one in group] for group in groups]
