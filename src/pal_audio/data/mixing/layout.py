"""When each event of a scene begins: silences within their ranges, and neighbours that overlap. Lengths in samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pal_audio.data.mixing.settings import SceneConfig
from pal_audio.data.mixing.tasks import Plan


@dataclass(frozen=True)
class Layout:
    """Where the events of a scene lie.

    Attributes:
        num_samples: of the scene.
        onsets: of the events, in order.
        groups: how many neighbouring events sound together: 1, or 2.
    """

    num_samples: int
    onsets: tuple[int, ...]
    groups: tuple[int, ...]


def longest_event_s(scene: SceneConfig, most: int) -> float:
    """The longest stretch of an event so that `most` of them fit; the same for any number of events, so that it tells nothing."""
    silence_s = scene.lead_s[0] + scene.tail_s[0] + (most - 1) * scene.gap_s[0]
    return max(scene.event_s[0], min(scene.event_s[1], (scene.seconds[0] - silence_s) / most))


def lay_out(lengths: Sequence[int], scene: SceneConfig, rate_hz: int, rng: np.random.Generator, plan: Plan) -> Layout | None:
    """Give every event its onset; None where they do not fit.

    Args:
        lengths: of the events.
        scene: silences, overlap, seconds.
        rate_hz: samples a second.
        rng: of the item.
        plan: says whether the events are one string, and whether they may overlap.
    """
    num_samples = round(rng.uniform(*scene.seconds) * rate_hz)
    groups, starts, ends = [], [], []  # starts of events within their group, ends of groups
    if plan.joined:
        gaps = np.round(rng.uniform(*scene.digit_gap_s, len(lengths)) * rate_hz).astype(int)
        starts = [int(start) for start in np.concatenate([[0], np.cumsum(np.array(lengths) + gaps)[:-1]])]
        groups, ends = [len(lengths)], [starts[-1] + lengths[-1]]
    else:
        at = 0
        while at < len(lengths):
            pair = not plan.apart and scene.overlap is not None and at + 1 < len(lengths) and rng.uniform() < scene.overlap.chance
            if pair and scene.overlap is not None:
                covered = round(rng.uniform(*scene.overlap.share) * min(lengths[at : at + 2]))
                starts += [0, lengths[at] - covered]
                ends.append(starts[-1] + lengths[at + 1])
            else:
                starts.append(0)
                ends.append(lengths[at])
            groups.append(1 + pair)
            at += groups[-1]
    spans = [scene.lead_s, *[scene.gap_s] * (len(groups) - 1), scene.tail_s]
    silences = _shared(num_samples - sum(ends), np.array(spans) * rate_hz, rng)
    if silences is None:
        return None
    if scene.trim is not None and rng.uniform() < scene.trim:
        num_samples -= silences[0] + silences[-1]
        silences[0] = silences[-1] = 0
    onsets, begin, event = [], silences[0], 0
    for group, (size, length) in enumerate(zip(groups, ends, strict=True)):
        onsets += [begin + start for start in starts[event : event + size]]
        event += size
        begin += length + silences[group + 1]
    return Layout(num_samples, tuple(onsets), tuple(groups))


def _shared(num_samples: int, spans: np.ndarray, rng: np.random.Generator) -> list[int] | None:
    """Share silence out at random, each part within its span; the last takes what no other may. None: less than the shortest."""
    lows = np.floor(spans[:, 0])
    rooms = np.maximum(np.floor(spans[:, 1]) - lows, 0)
    spare = num_samples - lows.sum()
    if spare < 0:
        return None
    parts = np.zeros(len(lows))
    for _ in range(len(lows)):  # each round fills at least one up, or ends
        open_ = parts < rooms
        left = spare - parts.sum()
        if left < 1 or not open_.any():
            break
        parts[open_] += left * rng.dirichlet(np.ones(int(open_.sum())))
        parts = np.minimum(parts, rooms)
    silences = (lows + np.floor(parts)).astype(int).tolist()
    silences[-1] += num_samples - sum(silences)
    return silences
