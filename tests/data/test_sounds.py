"""Sounds: shape of the waves, kept-apart parameters, and kinds that can be told from each other."""

from itertools import pairwise

import numpy as np
import pytest

from pal_audio.data.sounds import CELL_MARGIN, KINDS, NUM_CELLS, PEAK, Range, SoundParams, cell_split, draw, render
from pal_audio.errors import PalError

RATE_HZ = 16000


def drawn(kind: str, split: str, num: int, **options: float) -> list[SoundParams]:
    rng = np.random.default_rng([num, split == "test"])
    return [draw(kind, split, rng, **options) for _ in range(num)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate_hz", [16000, 22050, 44100])
def test_wave_is_normalised_and_does_not_click(kind: str, rate_hz: int) -> None:
    for split in ("train", "test"):
        for params in drawn(kind, split, 4, duration_s=0.9):
            wav_S = render(kind, params, rate_hz)
            assert wav_S.dtype == np.float32
            assert wav_S.ndim == 1
            assert 0.04 * rate_hz < len(wav_S) <= 0.9 * rate_hz
            assert np.max(np.abs(wav_S)) == pytest.approx(PEAK)
            assert wav_S[0] == 0
            assert abs(wav_S[-1]) < 1e-3
            np.testing.assert_array_equal(wav_S, render(kind, params, rate_hz))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_split_lies_in_its_cells(kind: str) -> None:
    """Both from the definition (cells) and from what was drawn (no test value within two margins of a train value)."""
    for name, interval in KINDS[kind].ranges.items():
        places = {}
        for split in ("train", "test"):
            places[split] = np.array([interval.unit(params.values[name]) for params in drawn(kind, split, 400)]) * NUM_CELLS
            assert {cell_split(int(place)) for place in places[split]} == {split}
            assert {int(place) for place in places[split]} == {c for c in range(NUM_CELLS) if cell_split(c) == split}
        nearest = np.min(np.abs(places["train"][:, None] - places["test"][None, :]))
        assert nearest >= 2 * CELL_MARGIN - 1e-9
        assert places["train"].min() < places["test"].min()  # test values are asked for between trained ones
        assert places["train"].max() > places["test"].max()


def test_cells_cover_the_range_once() -> None:
    splits = [cell_split(cell) for cell in range(NUM_CELLS)]
    assert splits.count("test") == 3
    assert splits[0] == splits[-1] == "train"
    assert not any(a == b == "test" for a, b in pairwise(splits))


@pytest.mark.parametrize("log", [True, False])
def test_range_inverts(log: bool) -> None:
    interval = Range(30.0, 900.0, log)
    assert interval.value(0.0) == pytest.approx(30)
    assert interval.value(1.0) == pytest.approx(900)
    assert interval.unit(interval.value(0.37)) == pytest.approx(0.37)


def test_kinds_are_learnable_on_sources_never_trained_on() -> None:
    """The nearest train sound by level-free mean log spectrum names most test sounds; chance is 1 in 14."""

    def feature(wav_S: np.ndarray) -> np.ndarray:
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(wav_S, 512), 512)[::256] * np.hanning(512)
        power = np.abs(np.fft.rfft(frames)) ** 2
        edges = np.unique(np.geomspace(2, 256, 25).astype(int))
        bands = np.stack([power[:, a:b].sum(1) for a, b in pairwise(edges)], axis=1)
        log_bands = np.log(bands.mean(0) + 1e-6)
        return log_bands - log_bands.mean()

    features, labels = {}, {}
    for split, num in (("train", 30), ("test", 10)):
        pairs = [(kind, params) for kind in KINDS for params in drawn(kind, split, num, duration_s=1.0)]
        features[split] = np.array([feature(render(kind, params, RATE_HZ)) for kind, params in pairs])
        labels[split] = np.array([kind for kind, _ in pairs])
    distance = ((features["test"][:, None] - features["train"][None]) ** 2).sum(-1)
    accuracy = np.mean(labels["train"][distance.argmin(1)] == labels["test"])
    assert accuracy > 0.9


def test_sources_vary_within_a_kind() -> None:
    for kind in KINDS:
        waves = [render(kind, params, RATE_HZ) for params in drawn(kind, "train", 3, duration_s=0.5)]
        for a, b in pairwise(waves):
            size = min(len(a), len(b))
            overlap = np.dot(a[:size], b[:size]) / (np.linalg.norm(a[:size]) * np.linalg.norm(b[:size]))
            assert abs(overlap) < 0.9, kind


def test_wrong_kind_and_wrong_parameters_are_named() -> None:
    with pytest.raises(PalError, match="unknown kind of sound 'bel'"):
        render("bel", SoundParams({}), RATE_HZ)
    with pytest.raises(PalError, match="decay_s"):
        render("bell", SoundParams({"pitch_hz": 600.0}), RATE_HZ)
    with pytest.raises(PalError, match="16000 Hz or more, got 8000"):
        render("bell", drawn("bell", "train", 1)[0], 8000)
