"""benchmarks/efficiency.sh: every command that it names is one that `pal bench` understands."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pal_audio import cli

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "efficiency.sh"
NAMES = re.findall(r"^    ([a-z0-9-]+)\)", SCRIPT.read_text(), flags=re.MULTILINE)


def commands(name: str, tmp_path: Path) -> list[list[str]]:
    """What the script would call, an argument list each."""
    tell = tmp_path / "tell"
    tell.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done; echo --end--\n')
    tell.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "OUT": "results", "PYTHON": str(tell)}
    done = subprocess.run(["bash", str(SCRIPT), name], env=environment, capture_output=True, text=True, check=True)
    return [call.strip().splitlines() for call in done.stdout.split("--end--\n") if call.strip()]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "peers"])
def test_every_command_is_understood(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = commands(name, tmp_path)
    assert found
    for words in found:
        assert words[:3] == ["-m", "pal_audio", "bench"], shlex.join(words)
        assert cli.main([*words[2:], "--device", "nowhere"]) == 2
        assert "device 'nowhere' is unknown" in capsys.readouterr().err, "everything before the device was right"


def test_flags_are_of_compiled_steps_unless_said_otherwise(tmp_path: Path) -> None:
    assert "model" in commands("train-16x1024", tmp_path)[0]
    assert "model" not in commands("train-eager", tmp_path)[0]
    eager, compiled = commands("fit", tmp_path), commands("fit-compiled", tmp_path)
    assert ["model" in words for words in eager + compiled] == [False, False, True, True]
    fitted, checked = ({words[words.index("--llm") + 1] for words in commands(name, tmp_path)} for name in ("fit", "check"))
    assert not fitted & checked, "shapes to check on are not those to fit on"


def test_the_peers_are_called_with_their_options(tmp_path: Path) -> None:
    ((file, *words),) = commands("peers", tmp_path)
    assert file == "benchmarks/peers.py"
    assert {word for word in words if word.startswith("--")} == {"--llm", "--batch", "--audio-tokens", "--out"}


def test_another_name_is_refused_and_the_names_are_told(tmp_path: Path) -> None:
    assert len(NAMES) > 10
    with pytest.raises(subprocess.CalledProcessError) as error:
        commands("nothing", tmp_path)
    assert error.value.returncode == 2
