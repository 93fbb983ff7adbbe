"""Fewer resamples and strings: the tests ask whether an interval is there and on which side of 0, not for its third digit."""

import pytest

from pal_audio.evaluation import judging, scoring
from pal_audio.evaluation.tasks import digits


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "RESAMPLES", 200)
    monkeypatch.setattr(judging, "MAP_RESAMPLES", 20)
    monkeypatch.setattr(scoring, "RESAMPLES", 200)
    monkeypatch.setattr(digits, "NUM_STRINGS", 24)
