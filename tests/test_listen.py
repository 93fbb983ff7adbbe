"""examples/listen.py: what a stream is asked is what the whole file, cut there, would be asked."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from pal_audio.errors import PalError
from pal_audio.model.conversation import answer_about
from tests.tiny import RATE_HZ, noise, tiny_model

SCRIPT = Path(__file__).parents[1] / "examples" / "listen.py"
SOUND = noise(4.6, 3)


@pytest.fixture(scope="module")
def listen() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("listen", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_and_processor(**options: Any) -> tuple[Any, Any]:
    return tiny_model("llama", "lal", positions="zero", **{"connector": {"type": "mlp", "stride": 5}, **options})


def test_answers_of_a_stream_are_those_of_the_sound_so_far(listen: Any) -> None:
    model, processor = model_and_processor()
    pieces = [SOUND[start : start + 5_000] for start in range(0, len(SOUND), 5_000)]
    found = list(listen.listen(model, processor, iter(pieces), "a bell", 2.0))
    assert [seconds for seconds, _ in found] == [2.0, 4.0, 4.6]
    for seconds, answer in found:
        so_far = processor.clip(SOUND[: round(seconds * RATE_HZ)], RATE_HZ)
        memory = model.encode_audio(**processor.collate_clips([so_far]))
        assert answer == answer_about(model, processor, memory, "a bell")
    assert list(listen.listen(model, processor, iter([]), "a bell", 2.0)) == []


def test_a_growing_file_is_heard_to_its_end(listen: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, SOUND[:RATE_HZ], RATE_HZ, subtype="FLOAT")
    pieces = listen.growing_file(str(path), RATE_HZ, patience_s=0.05, poll_s=0.01)
    assert len(next(pieces)) == RATE_HZ
    soundfile.write(path, SOUND, RATE_HZ, subtype="FLOAT")
    assert (next(pieces) == SOUND[RATE_HZ:]).all()
    assert list(pieces) == []


def test_the_script_on_a_file(listen: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = model_and_processor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "a.wav", SOUND, RATE_HZ)
    common = ["--model", str(tmp_path / "model"), "--every-s", "2", "--patience-s", "0"]
    assert listen.main([str(tmp_path / "a.wav"), *common]) == 0
    out = capsys.readouterr().out
    assert all(mark in out for mark in ("     2.0 s  ", "     4.0 s  ", "     4.6 s  "))
    assert listen.main(common) == 2
    assert "give a FILE or --microphone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"), [(["--every-s", "-3"], "seconds greater than 0"), (["--question", " "], "--question is empty")]
)
def test_senseless_options(listen: Any, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert listen.main(["a.wav", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_microphone_package_and_a_model_that_cannot_stream(listen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(PalError, match="pip install sounddevice"):
        next(listen.microphone(RATE_HZ))
    model, processor = model_and_processor(connector={"type": "qformer", "queries": 2, "num_heads": 2})
    with pytest.raises(PalError, match="'qformer' reads the whole clip"):
        next(listen.listen(model, processor, iter([SOUND]), "a bell", 2.0))
