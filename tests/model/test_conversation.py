"""Turns over one memory and one cache: the same answers as asking everything anew, by Python and by `pal chat`."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.model.conversation import Conversation, answer_about
from tests.tiny import RATE_HZ, batch, message, noise, tiny_model

CLIPS = [noise(0.4, 1), noise(1.3, 2), noise(0.7, 3)]


def fresh_answer(model: Any, processor: Any, messages: list[dict[str, Any]], sounds: list[Any]) -> str:
    """The answer of a model that keeps nothing: all sound and text at once."""
    heard = iter(sounds)
    whole = []
    for turn in messages:
        parts = turn["content"]
        if isinstance(parts, list):
            parts = [{"type": "audio", "audio": next(heard)} if part["type"] == "audio" else part for part in parts]
        whole.append({**turn, "content": parts})
    inputs = batch(processor, [whole])
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("arm", ["plits", "lal", "pal", "flamingo"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_turn_equals_asking_anew(family: str, arm: str) -> None:
    model, processor = tiny_model(family, arm)
    talk = Conversation(model, processor, system="you are a careful listener")
    seen: list[int] = []
    handle = model.encoders["audio"].register_forward_hook(lambda *call: seen.append(1))
    kept, answers = [], []
    for question, clips in (("what sound is this?", CLIPS[:1]), ("a bell", []), ("and this?", CLIPS[1:])):
        for clip in clips:
            talk.add(clip, RATE_HZ)
        answers.append(talk.ask(question, max_new_tokens=6))
        kept.append(talk.num_kept)
    handle.remove()
    assert len(seen) == len(CLIPS)  # each clip once
    assert kept[0] == 0
    if family == "llama":
        assert kept[1] > 10
        assert kept[2] > kept[1]
    users = [number for number, turn in enumerate(talk.messages) if turn["role"] == "user"]
    for number, answer in zip(users, answers, strict=True):
        assert answer == fresh_answer(model, processor, talk.messages[: number + 1], CLIPS)


def test_a_failed_turn_leaves_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", "lal", llm={"max_position_embeddings": 110}, connector={"type": "mlp", "stride": 1})
    talk = Conversation(model, processor)
    talk.add(CLIPS[0], RATE_HZ)
    first = talk.ask("a bell", max_new_tokens=2)
    before = list(talk.messages)
    with pytest.raises(PalError, match="empty"):
        talk.ask(" ")
    talk.add(noise(4.0), RATE_HZ)
    with pytest.raises(PalError, match="zero"):
        talk.ask("and now?")
    assert talk.messages == before
    assert isinstance(first, str)


def test_one_question_about_a_memory() -> None:
    model, processor = tiny_model("llama", "pal")
    memory = model.encode_audio(**processor.collate_clips([processor.clip(clip, RATE_HZ) for clip in CLIPS]))
    inputs = batch(processor, [message(*CLIPS, system=None)])
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answer_about(model, processor, memory, "what sound is this?", 6) == expected


# ---- the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A saved model and three sounds, in the present folder."""
    model, processor = tiny_model("llama", getattr(request, "param", "pal"))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    for number, clip in enumerate(CLIPS):
        soundfile.write(tmp_path / f"{number} a.wav", clip, RATE_HZ)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chat(monkeypatch: pytest.MonkeyPatch, text: str, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return cli.main(["chat", *options, "--model", "model", "--device", "cpu", "--max-new-tokens", "4"])


@pytest.mark.parametrize("folder", ["pal", "flamingo"], indirect=True)
def test_chat_in_a_pipe(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = "what sound is this?\n\na bell\n/add 1 a.wav\n/add 2 a.wav\nand these?"
    assert chat(monkeypatch, text, "0 a.wav", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["question"] for line in lines] == ["what sound is this?", "a bell", "and these?"]
    assert [line["audio"] for line in lines] == [["0 a.wav"], [], ["1 a.wav", "2 a.wav"]]
    assert [line["turn"] for line in lines] == [1, 2, 3]
    assert lines[2]["kept_tokens"] > lines[1]["kept_tokens"] > lines[0]["kept_tokens"] == 0
    assert chat(monkeypatch, text, "0 a.wav") == 0
    plain = capsys.readouterr().out
    assert [line.strip() for line in plain.split("\n")[:-1]] == [line["answer"] for line in lines]
    assert chat(monkeypatch, "/quit\nnever asked", "0 a.wav") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("/add nope.wav\n", (), "nope.wav: no such file"),
        ("/add https://example.org/a.wav\n", (), "fetches nothing"),
        ("/sing\n", (), "/sing: not a command; a line is a question"),
        ("/add\n", (), "/add: name a sound file: /add FILE"),
        ("/add\tnope.wav\n", (), "nope.wav: no such file"),
        ("what\udcff?\n", (), "no Unicode text at character"),
        ("", ("-",), "reads questions from stdin"),
        ("", ("nope.wav",), "no such file"),
    ],
)
def test_chat_in_a_pipe_ends_at_the_first_error(
    folder: Path, text: str, options: Any, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, text, *options) == 2
    assert words in capsys.readouterr().err


def test_chat_at_a_terminal_goes_on_after_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})("/add nope.wav\na bell\n")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["chat", "--model", "model", "--device", "cpu", "--max-new-tokens", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "nope.wav: no such file" in err
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["a bell"]


def test_sounds_that_do_not_fit_together_are_taken_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else every later question would fail with it."""
    config = json.loads(Path("model/config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 120
    Path("model/config.json").write_text(json.dumps(config))
    soundfile.write("long.wav", noise(30, 1), RATE_HZ)
    soundfile.write("half.wav", noise(12, 1), RATE_HZ)
    lines = "/add long.wav\n/add half.wav\n/add half.wav\na?\nb?\n/drop\nc?\n"
    stdin = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})(lines)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert cli.main(["chat", "--model", "model", "--device", "cpu", "--max-new-tokens", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.count("; /drop takes back the sounds since the last answer") == 2
    assert err.count("error: clip 1 of 1 lasts 30.0 s") == 1, "it is not taken in the first place"
    assert "pal: taken back: 2" in err
    assert [json.loads(line)["question"] for line in out.splitlines()] == ["c?"]
