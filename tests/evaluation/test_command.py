"""`pal eval` from the command line, with a tiny model: one clip broken, one set missing, shards, mistakes."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import soundfile

from pal_audio import cli
from pal_audio.data.manifest import AudioPart
from pal_audio.errors import Stopped
from pal_audio.evaluation.model_answerer import ModelAnswerer
from pal_audio.evaluation.run import Request, ask, plan
from pal_audio.evaluation.tasks import TASKS
from pal_audio.model import load
from tests.evaluation import sets
from tests.evaluation.planted import Planted
from tests.tiny import RATE_HZ, noise, tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and two sets."""
    folder = tmp_path_factory.mktemp("place")
    for part in tiny_model("llama", "lal"):
        part.save_pretrained(folder / "model")
    sets.csv(folder / "data" / "csv")
    sets.answers(folder / "data" / "answers")
    return folder


@pytest.fixture(autouse=True)
def in_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def arguments(out: str, *more: str, tasks: str = "csv,answers") -> list[str]:
    return ["eval", "model", out, "--tasks", tasks, "--data", "data", "--device", "cpu", "--conditions", "shuffled", *more]


def test_a_model_is_scored_whatever_is_missing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main(arguments("whole", "--json", tasks="csv,answers,esc50"))
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert status == 2
    assert "pal: error: 1 of the tasks were left out: esc50; the reasons are above" in err
    assert "looked for meta/esc50.csv" in err
    assert list(scores["tasks"]) == ["csv", "answers"]
    assert "no ESC-50 layout" in scores["left_out"]["esc50"]
    assert [item["id"] for item in scores["tasks"]["csv"]["left_out"]] == ["mine-6", "mine-9"]
    report = (place / "whole" / "report.md").read_text()
    assert "## Tasks left out\n\n- esc50: no ESC-50 layout" in report
    answers = [json.loads(line) for line in (place / "whole" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 2 * 2 * 12
    assert all(len(line["scores"]) == 3 for line in answers if line["task"] == "csv" and not line["fault"])


def test_a_clip_too_long_for_its_question_leaves_the_others_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It fits the context alone; under every condition it is the only one beside the missing and the broken clip."""
    for part in tiny_model("llama", "pal", connector={"type": "mlp", "stride": 1}, llm={"max_position_embeddings": 100}):
        part.save_pretrained(place / "short" / "model")
    manifest = sets.answers(place / "short" / "data" / "answers")
    soundfile.write(manifest.parent / "c3.wav", noise(3.6, 3), RATE_HZ)
    model, processor = load(place / "short" / "model")
    assert ModelAnswerer(model, processor, "").hear([AudioPart(path=str(manifest.parent / "c3.wav"))])
    words = ["eval", "short/model", "short/out", "--tasks", "answers", "--data", "short/data", "--device", "cpu", "--json"]
    assert cli.main(words) == 0
    left_out = json.loads(capsys.readouterr().out)["tasks"]["answers"]["left_out"]
    assert len(left_out) == 3
    (reason,) = [item["reason"] for item in left_out if item["id"] == "c3"]
    assert "positions with its question" in reason
    assert "c3: " in (place / "short" / "out" / "report.md").read_text()
    answers = [json.loads(line) for line in (place / "short" / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 4 * 12
    assert sum(bool(line["fault"]) for line in answers) == 4 * 3


def test_shards_and_resume_give_the_same_bytes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments("one", "--batch-size", "5")) == 0
    assert capsys.readouterr().out == "one/report.md\n"
    assert cli.main(arguments("one", "--batch-size", "5")) == 2
    assert "go on with --resume" in capsys.readouterr().err
    answers = (place / "one" / "answers.jsonl").read_bytes()
    scores, report = (place / "one" / "scores.json").read_bytes(), (place / "one" / "report.md").read_bytes()
    (place / "one" / "answers.jsonl").write_bytes(answers[: len(answers) // 3])
    assert cli.main(arguments("one", "--batch-size", "5", "--resume")) == 0
    assert (place / "one" / "answers.jsonl").read_bytes() == answers
    for index in range(2):
        assert cli.main(arguments("two", "--batch-size", "5", "--shard", f"{index}/2")) == 0
    assert cli.main(["eval", "score", "two"]) == 0
    assert (place / "two" / "answers.jsonl").read_bytes() == answers
    assert (place / "two" / "scores.json").read_bytes() == scores == (place / "one" / "scores.json").read_bytes()
    assert (place / "two" / "report.md").read_bytes() == report
    capsys.readouterr()
    assert cli.main(["eval", "compare", "one", "two", "--json"]) == 0
    assert {row["difference"] for row in json.loads(capsys.readouterr().out)["tasks"]} == {0}
    assert cli.main(["eval", "compare", "one", "two"]) == 0
    assert "csv by rank, 12 items: accuracy" in capsys.readouterr().out


def test_the_list_names_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--list"]) == 0
    out = capsys.readouterr().out
    for name, task in TASKS.items():
        assert f"\n{name:<14} {task.kind}, " in f"\n{out}"
        assert f"--data {name}=ROOT" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "model", "out"], "Missing option '--tasks'"),
        (["eval", "nowhere", "out", "--tasks", "csv"], "MODEL nowhere: no such folder"),
        (["eval", "model", "out", "--tasks", "csw", "--data", "data"], "did you mean 'csv'?"),
        (["eval", "model", "out", "--tasks", "csv,csv", "--data", "data"], "each once"),
        (["eval", "model", "out", "--tasks", "csv"], "say where it is, --data csv=ROOT"),
        (["eval", "model", "out", "--tasks", "csv", "--data", "csv=nowhere"], "no such file or folder nowhere"),
        (["eval", "model", "out", "--tasks", "csv", "--data", "data", "--split", "csv=test"], "--split csv=test: there are all"),
        (["eval", "model", "out", "--tasks", "csv", "--data", "data", "--split", "csv"], "--split csv: write it as NAME=VALUE"),
        (["eval", "model", "out", "--tasks", "csv", "--data", "data", "--method", "guess"], "--method guess: there are rank"),
        (
            ["eval", "model", "out", "--tasks", "csv", "--data", "data", "--conditions", "loud"],
            "--conditions loud: there are real",
        ),
        (["eval", "model", "out", "--tasks", "csv", "--data", "data", "--shard", "2/2"], "--shard 2/2: write it as I/N"),
        (["eval", "model", "out", "--tasks", "csv", "--data", "data", "--resume", "--overwrite"], "exclude each other"),
        (["eval", "score", "nowhere"], "OUT nowhere: no such folder"),
        (["eval", "score", "data"], "data: no evaluation here"),
        (["eval", "score", "data", "--with", "aac-metrics"], "--with and --python belong together"),
        (["eval", "compare", "data", "data"], "data: no evaluation here"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("pal: error: ")]
    assert message in line
    assert not (place / "out").exists()


def test_a_signal_saves_the_batch_at_hand(tmp_path: Path) -> None:
    class Signalled(Planted):
        def listen(self, heard: Any) -> Any:
            if len(self.batches) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().listen(heard)

    planned = plan(Request(["csv"], {"csv": Path("data/csv")}, conditions=["shuffled"]))
    with pytest.raises(Stopped, match=r"2 of 3 batches are saved; go on with --resume") as stopped:
        ask(Signalled(), planned, tmp_path / "out", batch_size=5)
    assert stopped.value.status == 143
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 20
    ask(Planted(), planned, tmp_path / "whole", batch_size=5)
    ask(Planted(), planned, tmp_path / "out", batch_size=5, resume=True)
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()
