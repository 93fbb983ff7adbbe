"""The command line: what it says, where it says it, and with which exit status.

Models are stood in for by small fakes; the real `pal ask` with a trained model is in tests/test_packaging.py.
"""

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.main import get_command
from typer.testing import CliRunner

import pal_audio
from pal_audio import cli
from pal_audio.audio import load_audio
from pal_audio.commands import ask, models, recipes
from pal_audio.errors import PalError

NEEDED, MOST = ["-c", "import typer, rich.console, rich.table"], 5  # seen: 2.1 to 3.2; torch alone 17
HEAVY = ("torch", "transformers", "numpy", "soundfile", "datasets", "peft", "accelerate")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test stands in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tone(empty_folder: Path) -> str:
    """A good sound file."""
    wav_S = 0.1 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
    soundfile.write(empty_folder / "tone.wav", wav_S, 16_000)
    return "tone.wav"


def make_run(name: str, finished_at_s: int) -> Path:
    """A finished run under ./runs."""
    final = Path("runs", name, "final")
    final.mkdir(parents=True)
    (final / "config.json").write_text("{}")
    finished = final.parent / "finished.json"
    finished.write_text("{}")
    os.utime(finished, (finished_at_s, finished_at_s))
    return final


class FakeTokenizer:
    words = ("a", "dog", "barks")

    def decode(self, ids: Any, skip_special_tokens: bool = False, **_: Any) -> str:
        return " ".join(self.words[int(number)] for number in ids)


class FakeProcessor:
    tokenizer = FakeTokenizer()

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen = seen

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        import torch
        from transformers import BatchFeature

        self.seen |= {"messages": messages, "options": options}
        for part in messages[0]["content"][:-1]:  # decoded once more, as the real one does, at the model's own rate
            load_audio(part.get("path") or part["audio"], 8_000)
        print("noise of a library on stdout")
        return BatchFeature({"input_ids": torch.zeros(1, 4, dtype=torch.int64)})


class FakeModel:
    """It gives each of its three tokens a probability of one half."""

    def __init__(self, seen: dict[str, Any]) -> None:
        self.seen = seen
        self.config = SimpleNamespace(calibration=seen.get("calibration"))

    def generate(self, input_ids: Any, streamer: Any = None, **options: Any) -> Any:
        import torch

        self.seen["generate"] = options
        new = torch.tensor([[0, 1, 2]])
        if streamer is not None:
            for tokens in (input_ids, *new[0].split(1)):  # the prompt comes first and is skipped
                streamer.put(tokens)
            streamer.end()
        logits = [torch.full((1, 3), -torch.inf).index_fill(1, torch.tensor([token, (token + 1) % 3]), 0.0) for token in range(3)]
        wanted = tuple(logits) if options["output_logits"] else None
        return SimpleNamespace(sequences=torch.cat([input_ids, new], dim=1), logits=wanted)


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`pal_audio.model` with `load` and `describe` faked; what they saw comes back."""
    from pal_audio.model import confidence

    seen: dict[str, Any] = {}

    def load(path: str, device: str) -> tuple[FakeModel, FakeProcessor]:
        seen.update(path=path, device=device)
        return FakeModel(seen), FakeProcessor(seen)

    module = SimpleNamespace(load=load, describe=lambda model: {"streams": [{"encoder": "ear"}], "parameters": {"total": 7}})
    monkeypatch.setitem(sys.modules, "pal_audio.model", module)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pal_audio.model.confidence", confidence)
    return seen


@pytest.fixture
def fake_training(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`pal_audio.training` and the builder of data, faked."""
    seen: dict[str, Any] = {}

    def build(config: Any, out: Path, progress: Callable[[int, int], None], workers: int) -> tuple[Path, Path]:
        progress(1, 2)
        seen["build"] = (config, out, workers)
        return out / "train.jsonl", out / "test.jsonl"

    fakes = {
        "pal_audio.training.run": SimpleNamespace(train=lambda *arguments: seen.update(train=arguments)),
        "pal_audio.training.recipe": SimpleNamespace(load_data=lambda path, overrides: (path, overrides)),
        "pal_audio.data.mix": SimpleNamespace(build=build),
    }
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    return seen


@pytest.fixture
def own_recipe() -> str:
    """A recipe file in the present folder."""
    Path("mine.yaml").write_text("# Mine\ndata: {}\n")
    return "mine.yaml"


# ---- speed


@pytest.mark.parametrize(
    "arguments", [["--help"], ["ask", "--help"], ["ask"], ["ask", "a.wav", "b.wav"], ["bogus"], ["recipes", "list"]]
)
def test_answers_at_once_and_without_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pal_audio", *arguments]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "pal_audio.cli" in loaded
    assert not loaded.intersection(HEAVY)
    # Time on the processor, the best of three, beside that of importing what every command needs: machines differ.
    told, needed = (
        min(cpu_seconds([sys.executable, *words]) for _ in range(3)) for words in (["-m", "pal_audio", *arguments], NEEDED)
    )
    assert told <= MOST * needed


def cpu_seconds(command: list[str]) -> float:
    """Seconds on the processor that a command takes."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    subprocess.run(command, capture_output=True, check=False)
    return used() - before


def test_the_package_itself_is_light() -> None:
    program = f"import sys, pal_audio; sys.exit(bool(set(sys.modules) & set({HEAVY})))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert set(pal_audio.__all__) <= set(dir(pal_audio))
    with pytest.raises(AttributeError, match="nonsense"):
        pal_audio.nonsense  # noqa: B018


def test_every_name_of_the_package_is_there() -> None:
    for name in pal_audio.__all__:
        assert getattr(pal_audio, name) is not None


# ---- help


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all verbs and groups."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize("path", list(commands(get_command(cli.app))), ids=" ".join)
def test_every_help_has_an_example(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli.app, [*path, "--help"])
    assert done.exit_code == 0
    assert f"Example: pal {' '.join(path)}" in done.output
    assert CliRunner().invoke(cli.app, [*path, "-h"]).output == done.output


def test_only_verbs_that_work_are_named() -> None:
    verbs = {" ".join(path) for path in commands(get_command(cli.app))} - {""}
    data = {"data", "data mix", "data import", "data check", "data shard"}
    recipe = {"recipes", "recipes list", "recipes show", "recipes copy"}
    evaluation = {"eval", "eval run", "eval score", "eval compare"}
    bench = {"bench", "bench train", "bench infer", "bench plan"}
    assert verbs == {"ask", "chat", "train", "encode", "info", "export"} | data | recipe | evaluation | bench


def test_version_and_bare_pal(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pal {pal_audio.__version__}\n"
    assert cli.main([]) == 0
    assert "Usage: pal" in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "offered"), [("pal rec", "recipes"), ("pal recipes show ", "quickstart")])
def test_shell_completion(typed: str, offered: str) -> None:
    environment = os.environ | {
        "_PAL_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split(" ")) - 1),
    }
    done = subprocess.run([sys.executable, "-m", "pal_audio"], env=environment, capture_output=True, text=True, check=False)
    assert offered in done.stdout.split(), done.stderr


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'; see `pal --help`"),
        (["ask", "--nope", "a.wav", "What?"], "No such option: --nope"),
        (["ask"], "Missing argument 'AUDIO... QUESTION'; see `pal ask --help`"),
        (["ask", "a.wav", "What?", "--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["ask", "a.wav", "What?", "--max-new-tokens", "many"], "'--max-new-tokens'"),
        (["ask", "a.wav", "What?", "--json", "--stream"], "--json and --stream exclude each other"),
        (["data"], "Missing command; see `pal data --help`"),
        (["eval"], "Missing command; see `pal eval --help`"),
        (["recipes", "show", "quikstart"], "did you mean 'quickstart'?"),
        (["recipes", "show", "../secret"], "no shipped recipe is named '../secret'"),
        (["train", "nowhere.yaml"], "no such recipe file: nowhere.yaml"),
        (["train", "recipes/quickstart.yaml"], "use `quickstart` alone"),
        (["train", "quickstart", "--set", "seed"], "--set seed: write it as KEY=VALUE"),
        (["train", "quickstart", "--set", "data..seed=1"], "write it as KEY=VALUE"),
        (["train", "quickstart", "--resume", "--overwrite"], "--resume and --overwrite exclude each other"),
        (["info", "nowhere"], "nowhere: no such folder"),
        (["info", "."], "neither config.json nor final/config.json"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pal: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("words", [["a.wav"], ["a.wav", "b.wav"], ["a.wav", "missing.FLAC"], ["-"]])
def test_a_forgotten_question_is_asked_after(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ask", *words]) == 2
    err = capsys.readouterr().err
    assert "was the question forgotten?" in err
    assert words[-1] in err


def test_a_forgotten_question_after_a_file_without_extension(empty_folder: Path) -> None:
    (empty_folder / "recording").touch()
    with pytest.raises(PalError, match="was the question forgotten"):
        ask.split_words(["a.wav", "recording"])


def test_words_are_parted(tone: str) -> None:
    assert ask.split_words([tone, "-", "What is it?"]) == ([tone, "-"], "What is it?")
    with pytest.raises(PalError, match="the question is empty"):
        ask.split_words([tone, " "])
    with pytest.raises(PalError, match="a sound file is missing before the question"):
        ask.split_words(["What is it?"])
    with pytest.raises(PalError, match="put the question in quotes"):
        ask.split_words([tone, "What", "is", "it?"])
    with pytest.raises(PalError, match=r"nope\.wav: no such file$"):
        ask.split_words(["nope.wav", "What?"])
    with pytest.raises(PalError, match="can be given once"):
        ask.split_words(["-", "-", "What?"])
    with pytest.raises(PalError, match="download it first"):
        ask.split_words(["https://example.org/a.wav", "What?"])


def from_a_library() -> None:
    np.zeros(3).reshape(2)


def from_our_check() -> None:
    exec(compile("raise ValueError('stride 0: give 1 or more')", "ours", "exec"), {"__name__": "pal_audio.somewhere"})


def raising(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    return throw


@pytest.mark.parametrize(
    ("act", "status", "message"),
    [
        (raising(PalError("a\n  b")), 2, "a b"),
        (raising(FileNotFoundError(2, "No such file or directory", "x.wav")), 2, "x.wav: No such file or directory"),
        (raising(PermissionError(13, "Permission denied", "x.wav")), 2, "x.wav: Permission denied"),
        (raising(OSError("cannot find the model")), 2, "cannot find the model"),
        (raising(PalError("name \x1b[31m")), 2, r"name \x1b[31m"),
        (from_our_check, 2, "stride 0: give 1 or more"),
        (from_a_library, 1, "ValueError: cannot reshape"),
        (raising(RuntimeError("mat1 and mat2")), 1, "RuntimeError: mat1 and mat2"),
        (raising(AssertionError()), 1, "AssertionError: "),
        (raising(KeyError("x")), 1, "KeyError: 'x'"),
    ],
)
def test_whose_fault_it_is(
    act: Callable[[], None], status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipes, "shipped_names", act)
    assert cli.main(["recipes", "list"]) == status
    err = capsys.readouterr().err
    assert err.startswith(f"pal: error: {message}")
    assert err.count("\n") == 1
    assert ("--debug" in err) == (status == 1)
    for arguments in (["--debug", "recipes", "list"], ["recipes", "list", "--debug"]):
        assert cli.main(arguments) == status
        assert "Traceback" in capsys.readouterr().err


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(recipes, "shipped_names", raising(KeyboardInterrupt()))
    assert cli.main(["recipes", "list"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_library_that_misses_another_says_nothing() -> None:
    """transformers imports peft where it saves a model, peft bitsandbytes, and that warns on some processors."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, an optional extra, is not installed")
    code = "from pal_audio import cli; cli.main(['recipes', 'list']); import peft"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m pal_audio --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", f"sleep 0; {command}"], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_debug_after_two_dashes_is_a_word() -> None:
    assert cli._take_debug(["ask", "--debug", "--", "--debug"]) == (["ask", "--", "--debug"], True)
    assert cli._take_debug(["ask", "--", "--debug"]) == (["ask", "--", "--debug"], False)


# ---- ask


def test_ask(tone: str, fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    final = make_run("first", 1)
    assert cli.main(["ask", tone, "What is it?", "--max-new-tokens", "5", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == "a dog barks\n"
    assert err.startswith(f"pal: model {final} (the last finished run)\n")
    assert (fake_model["path"], fake_model["device"]) == (str(final), "cpu")
    (message,) = fake_model["messages"]
    assert message == {"role": "user", "content": [{"type": "audio", "path": tone}, {"type": "text", "text": "What is it?"}]}
    assert fake_model["options"] == {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    expected = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": False}
    assert fake_model["generate"] == expected


def test_ask_json_prints_nothing_else(tone: str, fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    final = make_run("first", 1)
    assert cli.main(["ask", tone, tone, "Wäs?", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"answer", "probability", "model", "audio", "question", "seconds", "warning"}
    assert (answer["probability"], answer["warning"]) == (0.125, None)
    assert (answer["answer"], answer["model"], answer["audio"], answer["question"]) == (
        "a dog barks",
        str(final),
        [tone, tone],
        "Wäs?",
    )
    assert answer["seconds"] >= 0


@pytest.mark.parametrize(("threshold", "warns"), [(0.12, False), (0.2, True)])
def test_ask_warns_below_the_calibrated_probability(
    tone: str, fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str], threshold: float, warns: bool
) -> None:
    make_run("first", 1)
    fake_model["calibration"] = {"threshold": threshold, "right_below": 0.4, "num_answers": 50, "measured_on": "two tests"}
    assert cli.main(["ask", tone, "What is it?", "--json"]) == 0
    out, err = capsys.readouterr()
    message = "the model is not sure of this answer (probability 0.12): of those below 0.20, 40% were right on two tests"
    assert (message in err) is warns
    assert json.loads(out)["warning"] == (message if warns else None)
    assert cli.main(["ask", tone, "What is it?"]) == 0
    out, err = capsys.readouterr()
    assert out == "a dog barks\n"
    assert (message in err) is warns


def test_ask_streams(tone: str, fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    make_run("first", 1)
    assert cli.main(["ask", tone, "What is it?", "--stream"]) == 0
    assert capsys.readouterr().out == "a dog barks\n"


def test_ask_reads_stdin(tone: str, fake_model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("first", 1)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(tone).read_bytes())))
    assert cli.main(["ask", "-", "What is it?"]) == 0
    assert fake_model["messages"][0]["content"][0]["audio"]["bytes"] == Path(tone).read_bytes()


@pytest.mark.parametrize("content", [b"", b"not a sound at all", b"RIFF\x24\x00\x00\x00WAVE"])
def test_a_bad_file_is_told_before_a_model_is_loaded(
    content: bytes, fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("first", 1)
    Path("bad.wav").write_bytes(content)
    assert cli.main(["ask", "bad.wav", "What is it?"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pal: error: ")
    assert err.count("\n") == 1
    assert "bad.wav" in err
    assert fake_model == {}


def test_a_warning_is_one_line_and_said_once(fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    make_run("first", 1)
    soundfile.write("silent.wav", np.zeros(1600), 16_000)
    assert cli.main(["ask", "silent.wav", "What is it?"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pal: warning: ")]
    assert len(warnings) == 1
    assert "silent.wav" in warnings[0]


@pytest.mark.parametrize("device", ["nonsense", "cuda:77"])
def test_a_device_that_is_not_there(
    tone: str, device: str, fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("first", 1)
    assert cli.main(["ask", tone, "What is it?", "--device", device]) == 2
    assert f"--device {device}" in capsys.readouterr().err
    assert fake_model == {}


# ---- which model


def test_the_order_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_run("old", 100), make_run("new", 200)
    Path("runs/unfinished/final").mkdir(parents=True)
    Path("runs/half").mkdir()
    Path("runs/half/finished.json").touch()  # newest of all, but without a model
    assert models.choose(None) == (str(new), "the last finished run")
    monkeypatch.setenv("PAL_MODEL", "runs/old")
    assert models.choose(None) == (str(old), "$PAL_MODEL")
    assert models.choose("runs/new/final") == (str(new), "--model")


def test_without_any_other_model_the_bundled_one_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundled = tmp_path / "bundled"
    monkeypatch.setattr(models, "BUNDLED", bundled)
    with pytest.raises(PalError, match="there is no model"):
        models.choose(None)
    bundled.mkdir()
    (bundled / "config.json").write_text("{}")
    assert models.choose(None) == (str(bundled), "the bundled one")
    run = make_run("new", 1)
    assert models.choose(None) == (str(run), "the last finished run")


def test_no_model_says_how_to_make_one(
    tone: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "BUNDLED", tmp_path / "nowhere")
    assert cli.main(["ask", tone, "What is it?"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pal train quickstart" in err


def test_a_wrong_name_is_never_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    make_run("new", 1)
    monkeypatch.setenv("PAL_MODEL", "nowhere")
    with pytest.raises(PalError, match=r"\$PAL_MODEL nowhere: no such folder"):
        models.choose(None)
    with pytest.raises(PalError, match="--model elsewhere: no such folder"):
        models.choose("elsewhere")


def test_a_damaged_model_is_the_users_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load(name: str, device: str) -> None:
        np.frombuffer(b"abc", dtype=np.float32)  # a ValueError out of a library

    monkeypatch.setitem(sys.modules, "pal_audio.model", SimpleNamespace(load=load))  # type: ignore[arg-type]
    make_run("first", 1)
    assert cli.main(["info", "runs/first"]) == 2
    assert "runs/first/final: this model cannot be loaded" in capsys.readouterr().err


# ---- info, train, data, recipes


def test_info(fake_model: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    final = make_run("first", 1)
    assert cli.main(["info", "runs/first", "--json"]) == 0
    size = (final / "config.json").stat().st_size
    folder = {"path": str(final), "bytes": size, "holds": "everything", "bases": None}
    described = {"streams": [{"encoder": "ear"}], "parameters": {"total": 7}}
    assert json.loads(capsys.readouterr().out) == described | {"folder": folder}
    assert fake_model["path"] == str(final)
    assert cli.main(["info", "runs/first"]) == 0
    assert "encoder: ear" in capsys.readouterr().out


def test_train_passes_everything_on(own_recipe: str, fake_training: dict[str, Any]) -> None:
    assert cli.main(["train", own_recipe, "--set", "data.seed=2", "--set", "lr=1e-4", "--out", "there", "--resume"]) == 0
    assert fake_training["train"] == (Path(own_recipe), ["data.seed=2", "lr=1e-4"], Path("there"), True, False)
    assert cli.main(["train", "quickstart"]) == 0
    assert fake_training["train"] == (recipes.shipped("quickstart"), [], None, False, False)


def test_data_mix(own_recipe: str, fake_training: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "mix", own_recipe, "scenes", "--set", "data.seed=2", "--workers", "3"]) == 0
    assert fake_training["build"] == ((Path(own_recipe), ["data.seed=2"]), Path("scenes"), 3)
    assert capsys.readouterr().out == "scenes/train.jsonl\nscenes/test.jsonl\n"


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = recipes.shipped("quickstart")
    assert cli.main(["recipes", "list"]) == 0
    assert any(line.startswith("quickstart  ") for line in capsys.readouterr().out.splitlines()), (
        "its first line is a comment that says what it is"
    )
    assert cli.main(["recipes", "show", "quickstart"]) == 0
    assert capsys.readouterr().out == shipped.read_text()
    assert cli.main(["recipes", "copy", "quickstart"]) == 0
    assert Path("quickstart.yaml").read_text() == shipped.read_text()
    Path("quickstart.yaml").write_text("mine")
    assert cli.main(["recipes", "copy", "quickstart"]) == 2
    assert Path("quickstart.yaml").read_text() == "mine"
    assert cli.main(["recipes", "copy", "quickstart", "other.yaml"]) == 0
    assert cli.main(["recipes", "copy", "quickstart", "--overwrite"]) == 0
    assert Path("quickstart.yaml").read_text() == shipped.read_text()
    assert cli.main(["recipes", "copy", "quickstart", "no/such/folder/x.yaml"]) == 2


def small_set(folder: Path) -> Path:
    """Two labelled sounds and one that is not there, as a CSV of one's own."""
    folder.mkdir()
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, 0.1 * np.sin(np.arange(16_000) / 5), 16_000)
    (folder / "train.csv").write_text("path,label\na.wav,dog\nb.wav,rain\ngone.wav,dog\n")
    return folder


def test_data_import_and_check(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_set(empty_folder / "sounds")
    assert cli.main(["data", "import", "csv", "sounds", "out"]) == 0
    out, err = capsys.readouterr()
    assert out == "out/train.jsonl\n"
    assert "train: 2 examples" in err
    assert "left out: 1 items, no such audio file; see out/missing.txt" in err
    assert cli.main(["data", "import", "csv", "sounds", "out"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["data", "import", "csv", "sounds", "out", "--overwrite"]) == 0
    capsys.readouterr()

    assert cli.main(["data", "check", "out/train.jsonl", "--root", "sounds"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "2 examples (0 without an answer), 2 clips, 2.0 s; problems: 0" in err
    assert cli.main(["data", "check", "out/train.jsonl"]) == 2  # outside of the manifest's folder, and no root named
    out = capsys.readouterr().out
    assert [line.split(": ")[0] for line in out.splitlines()] == [f"out/train.jsonl, line {n}" for n in (1, 2)]
    assert cli.main(["data", "check", "out/train.jsonl", "--root", "sounds", "--max-seconds", "0.5", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [(problem["line"], problem["kind"]) for problem in found["problems"]] == [(1, "audio"), (2, "audio")]
    assert (found["examples"], found["open"], found["preview"]) == (2, 0, None)


def test_data_import_list_names_every_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "import", "--list"]) == 0
    out = capsys.readouterr().out
    for name in ("esc50", "fsdd", "librispeech", "audiocaps", "clotho", "openaqa", "mmau", "mmar", "sharegpt", "csv"):
        assert f"{name:<12} needs  " in out
    assert "http" not in out


def test_data_check_previews_what_a_model_would_say(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny import tiny_model

    small_set(empty_folder / "sounds")
    assert cli.main(["data", "import", "csv", "sounds", "out"]) == 0
    for part in tiny_model():
        part.save_pretrained("model")
    capsys.readouterr()
    arguments = ["data", "check", "out/train.jsonl", "--root", "sounds", "--model", "model"]
    assert cli.main(arguments) == 0
    line = capsys.readouterr().out
    assert line.startswith("supervised, ")
    assert "tokens of train-2: 'd" in line
    assert cli.main([*arguments, "--json"]) == 0
    preview = json.loads(capsys.readouterr().out)["preview"]
    assert preview["id"] == "train-2"
    assert "".join(preview["supervised"]).startswith("dog")
    assert cli.main([*arguments[:3], "--model", "model"]) == 2
    assert "no example is faultless" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import"], "Missing argument 'NAME'"),
        (["import", "esc5", ".", "out"], "did you mean 'esc50'?"),
        (["import", "esc50", ".", "../out"], "no ESC-50 layout under .; looked for"),
        (["import", "csv", ".", "out"], "lies in the set's own folder"),
        (["check", "gone.jsonl"], "gone.jsonl: cannot read the manifest"),
        (["check", "gone.jsonl", "--root", "nowhere"], "--root nowhere: no such folder"),
        (["check", "gone.jsonl", "--model", "nowhere"], "--model nowhere: no such folder"),
    ],
)
def test_a_mistake_about_data_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("pal: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
