"""A run that is broken off twice and goes on."""

from pathlib import Path
from typing import Any

import pytest

import pal_audio.training.run as run_module
from pal_audio.training.run import train


def broken_off(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[tuple[str, int], ...]) -> Path:
    """Train, break off after each of the given (stage, step), go on each time, and give the finished folder."""
    report = run_module._report
    for place in at:

        def stop(*arguments: Any, place: tuple[str, int] = place) -> None:
            report(*arguments)
            if (arguments[-2], arguments[-1].step) == place:
                raise KeyboardInterrupt

        monkeypatch.setattr(run_module, "_report", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out=out, resume=True)
    monkeypatch.setattr(run_module, "_report", report)
    return train(recipe, out=out, resume=True)
