"""docs/finetune-own-sounds.md as it stands: its table, its recipe and its commands, with a tiny model in the hub's place."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile
from accelerate.state import AcceleratorState

from pal_audio import cli
from pal_audio.training.recipe import load_recipe
from tests.tiny import RATE_HZ, noise
from tests.training.shrink import overrides

PAGE = (Path(__file__).parents[1] / "docs" / "finetune-own-sounds.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_it_is_short() -> None:
    assert len(PAGE.splitlines()) <= 30


def test_the_commands_lead_from_a_folder_of_sounds_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have begun with another precision
    monkeypatch.chdir(tmp_path)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "labels.csv").write_text(block("csv"))
    rows = [line.split(",") for line in block("csv").splitlines()[1:]]
    for number, row in enumerate(rows):
        soundfile.write(sounds / row[0], noise(0.5, seed=number), RATE_HZ)
    (tmp_path / "own.yaml").write_text(block("yaml"))
    shrinkers = [item for item in overrides(tmp_path / "own.yaml", tmp_path / "unused") if not item.startswith("data.")]
    assert any(item.startswith("model.llm=") for item in shrinkers)
    commands = [shlex.split(line) for line in block("sh").splitlines()]
    assert [command[:2] for command in commands] == [
        ["pal", "data"],
        ["pal", "data"],
        ["pal", "train"],
        ["pal", "train"],
        ["pal", "ask"],
    ]
    for _, *command in commands:
        capsys.readouterr()
        added = [word for item in shrinkers for word in ("--set", item)] if command[0] == "train" else []
        assert cli.main([*command, *added]) == 0, capsys.readouterr().err
        if "--plan" in command:
            assert not (tmp_path / "runs").exists()
    assert "runs/own" in capsys.readouterr().err, "it asks the run that the page has trained"
    recipe = load_recipe("own.yaml")
    assert recipe.adapter is not None
    assert len((tmp_path / "runs" / "own" / "answers.jsonl").read_text().splitlines()) == sum(row[2] == "test" for row in rows)
