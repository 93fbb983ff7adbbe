"""The model that comes with the package: whole, small, with its papers, and it hears."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.lab.bundle import MAX_BYTES
from examples import ask_bundled

from pal_audio import cli
from pal_audio.commands.models import BUNDLED
from pal_audio.model import load
from pal_audio.model.confidence import calibration_of

MAX_MEMORY = 1.5 * 2**30


def test_it_is_small_and_has_its_papers() -> None:
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".json", ".jinja", ".md", ".safetensors"}, "nothing that runs when it is read"
    card, papers = ((BUNDLED / name).read_text() for name in ("README.md", "ATTRIBUTION.md"))
    assert "license: cc-by-sa-4.0" in card
    assert "## Limits" in card
    assert papers.count("https://freesound.org/s/") > 50


def test_it_is_whole_and_says_what_its_probabilities_are_worth() -> None:
    model, processor = load(BUNDLED)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert processor.sampling_rates_hz == [16_000]
    worth = calibration_of(model.config)
    assert worth is not None
    assert 0 < worth.threshold < 1
    assert worth.right_below is not None
    assert worth.right_above is not None
    assert worth.right_below < 0.6 < worth.right_above


def test_the_demo_shows_sounds_that_it_knows(tmp_path: Path) -> None:
    answers = {(file, question): answer for file, question, answer, _ in ask_bundled.main(tmp_path)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dog-engine.wav", "dog.wav", "rain-dog.wav", "rain.wav"]
    assert answers["dog.wav", "What sound is this?"] == "dog"
    assert answers["rain.wav", "What do you hear?"] == "rain"
    assert answers["rain-dog.wav", "Which sound comes first?"] == "rain"
    assert answers["rain-dog.wav", "How many different sounds are there?"] == "two"
    assert answers["dog-engine.wav", "Which sound comes last?"] == "helicopter"
    assert answers["dog-engine.wav", "Describe the sounds in their order."].startswith("a dog barks, then ")


def test_pal_ask_takes_it_where_no_other_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask_bundled.make_sounds(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PAL_MODEL", raising=False)
    assert cli.main(["ask", "dog.wav", "What sound is this?", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["answer"], told["model"]) == ("dog", str(BUNDLED))
    assert 0 < told["probability"] <= 1


@pytest.mark.parametrize("verb", ["ask", "chat"])
def test_a_question_takes_little_memory_and_imports_are_not_searched_for_garbage(tmp_path: Path, verb: str) -> None:
    ask_bundled.make_sounds(tmp_path)
    if not Path("/proc/self/status").is_file():
        pytest.skip("a process's own peak is read from /proc; `getrusage` tells that of the process it was forked from")
    code = (
        "import gc, re, sys; from pal_audio.cli import main; status = main(sys.argv[1:]); "
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]; "
        "print(gc.get_freeze_count(), len(gc.get_objects()), peak, file=sys.stderr); sys.exit(status)"
    )
    question = "What sound is this?"
    asked = [str(tmp_path / "dog.wav"), *([question] if verb == "ask" else []), "--model", str(BUNDLED)]
    done = subprocess.run(
        [sys.executable, "-c", code, verb, *asked], input=question, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "dog\n"), done.stderr
    left_out, searched, peak_kb = (int(word) for word in done.stderr.split()[-3:])
    assert peak_kb * 1024 < MAX_MEMORY
    assert left_out > 10 * searched
