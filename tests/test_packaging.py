"""What is shipped works where nothing of this repository is: the wheel in an empty environment, run from an empty folder."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from examples import ask_bundled
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pal_audio
from pal_audio.commands.models import BUNDLED
from tests.tiny import noise, tiny_model

ROOT = Path(__file__).parents[1]
RECIPES = [path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that has the wheel.

    The dependencies are lent by the present environment through a .pth file, which spares gigabytes. A path named in
    a .pth file has its own .pth files ignored, so this repository's editable install is not lent with them.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)],
        check=True,
        capture_output=True,
    )
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (site / "lent.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    return folder / "bin"


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command with nothing of this repository on Python's path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_requirement_has_a_pin_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tested = [text for extra in ("eval", "plot", "train", "dev") for text in extras[extra]]
    wanted = [Requirement(text) for text in [*project["dependencies"], *tested]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if not line.startswith("#"))}
    for requirement in wanted:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement.name}=={pin} is outside {requirement.specifier}"
    assert not {"torchaudio", "torchvision"} & set(pins)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = {line.partition("#")[0].strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()}
    assert "make test" in commands
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_wheel_holds_what_it_must(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"pal_audio/py.typed", "pal_audio/cli.py"} <= names
    assert {f"pal_audio/recipes/{name}.yaml" for name in RECIPES} <= names
    assert {f"pal_audio/bundled/{path.name}" for path in BUNDLED.iterdir()} <= names
    assert {"pal_audio/bundled/model.safetensors", "pal_audio/bundled/ATTRIBUTION.md"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pal_audio", f"pal_audio-{pal_audio.__version__}.dist-info"}


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "python", "-c", "import pal_audio; print(pal_audio.__file__)"], tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed.parent), done.stderr


def test_pal_starts(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "pal", "--help"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert run([installed / "pal", "--version"], tmp_path).stdout == f"pal {pal_audio.__version__}\n"


def test_the_recipes_are_there(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "pal", "recipes", "list"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(line.split()[0] for line in done.stdout.splitlines()) == sorted(RECIPES)
    assert {"quickstart", "lab/world", "lab/arms/pal"} <= {*RECIPES}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a good sound, and one of each defect."""
    folder = tmp_path_factory.mktemp("sounds")
    model, processor = tiny_model("llama", "pal")
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    soundfile.write(folder / "good.wav", noise(1.0), 16_000)
    soundfile.write(folder / "misnamed.mp3", noise(0.5), 16_000, format="WAV")
    good = (folder / "good.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(good[: len(good) // 2])
    soundfile.write(folder / "silent.wav", np.zeros(8000), 16_000)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "headeronly.wav").write_bytes(good[:44])
    (folder / "text.wav").write_text("this is no sound\n" * 50)
    (folder / "random.flac").write_bytes(np.random.default_rng(0).bytes(5000))
    soundfile.write(folder / "nan.wav", np.full(800, np.nan, dtype=np.float32), 16_000, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    return folder


GOOD = {"good.wav": None, "misnamed.mp3": None, "truncated.wav": "got 0.499 s of 1.000 s", "silent.wav": "silent"}
BAD = {
    "empty.wav": "empty",
    "headeronly.wav": "no",
    "text.wav": "no audio",
    "random.flac": "no audio",
    "nan.wav": "NaN",
    "folder.wav": "folder|directory",
    "missing.wav": "no such file",
}


@pytest.mark.parametrize("name", GOOD)
def test_pal_ask_answers_offline_from_an_empty_folder(installed: Path, sounds: Path, tmp_path: Path, name: str) -> None:
    command = [installed / "pal", "ask", sounds / name, "What do you hear?", "--model", sounds / "model", "--max-new-tokens", "4"]
    done = run([*command, "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"answer", "probability", "model", "audio", "question", "seconds", "warning"}
    warned = GOOD[name]
    assert warned is None or warned in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_bundled_model_answers_offline_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    ask_bundled.make_sounds(sounds)
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run([installed / "pal", "ask", sounds / "dog.wav", "What sound is this?", "--json"], empty)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["answer"] == "dog"
    assert Path(told["model"]).is_relative_to(installed.parent), "that of the wheel, not of this repository"
    assert "the bundled one" in done.stderr
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("name", BAD)
def test_pal_ask_refuses_a_bad_file_in_one_line(installed: Path, sounds: Path, tmp_path: Path, name: str) -> None:
    done = run([installed / "pal", "ask", sounds / name, "What do you hear?", "--model", sounds / "model"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert name in line
    assert re.search(BAD[name], line), line


def test_the_example_of_the_readme_runs(installed: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"<!-- example:[^>]*-->\n```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(example.splitlines()) <= 15
    done = run([installed / "python", "-W", "ignore", "-c", example], tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
