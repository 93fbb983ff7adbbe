"""What is missing is named, with the command that installs it."""

import builtins
import sys

import numpy as np
import pytest

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics import transcription
from pal_audio.evaluation.metrics.classification import macro_f1, mean_average_precision, micro_f1
from pal_audio.evaluation.metrics.extras import load

NEEDS = {
    "sklearn": [
        lambda: macro_f1(["a"], ["a"]),
        lambda: micro_f1(["a"], ["a"]),
        lambda: mean_average_precision(np.ones((1, 1)), np.ones((1, 1))),
    ],
    "jiwer": [lambda: transcription.word_errors(["a"], ["a"], "none"), lambda: transcription.cer(["a"], ["a"], "none")],
    "whisper_normalizer": [lambda: transcription.word_errors(["a"], ["a"])],
}


@pytest.mark.parametrize(("module", "call"), [(module, call) for module, calls in NEEDS.items() for call in calls])
def test_a_missing_package_is_named(module: str, call, monkeypatch: pytest.MonkeyPatch) -> None:
    transcription._whisper.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(module), *sys.meta_path])
    package = {"sklearn": "scikit-learn", "whisper_normalizer": "whisper-normalizer"}.get(module, module)
    with pytest.raises(PalError, match=rf"needs the package {package}: pip install 'pal-audio\[eval\]'"):
        call()
    transcription._whisper.cache_clear()


class Absent:
    """Finds no module of a package, as if it were not installed."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == self.package:
            raise builtins.ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_that_lacks_something_of_its_own_is_not_called_missing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load("half_there", "a test")
