"""`pal chat`: several questions about sound files, line by line, over one memory and one text cache."""

import contextlib
import json
import os
import sys
import time
import warnings
from typing import Annotated, Any, TextIO

import typer

from pal_audio.commands import models
from pal_audio.commands.ask import checked_part, text_streamer
from pal_audio.errors import PalError

EXAMPLE = "Example: pal chat dog.wav"
HELP = "a line is a question; /add FILE gives another sound, /drop takes new sounds back, /quit or the end of input ends"


def chat(
    audio: Annotated[list[str] | None, typer.Argument(metavar="AUDIO...", help="Sound files of the first question.")] = None,
    model: models.ModelOption = None,
    device: models.DeviceOption = "auto",
    max_new_tokens: models.MaxNewTokensOption = 256,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one JSON object a line: answer, probability, question, audio, turn, kept_tokens, seconds, warning.",
        ),
    ] = False,
) -> None:
    """Answers questions about sound, one a line, from the terminal or a pipe; `/add FILE` gives another sound."""
    paths = audio or []
    for path in paths:
        check_file(path)
    choice = models.choose(model)
    models.announce(choice)
    stdout, is_terminal = sys.stdout, sys.stdin.isatty()
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not mix with the answers
        talk = _open(choice.model, models.pick_device(device))
        for path in paths:
            _add(talk, path)
        if is_terminal:
            print(f"pal: {HELP}", file=sys.stderr)
        heard, turn = list(paths), 0
        for line in _lines(is_terminal):
            try:
                command, *rest = line.split(maxsplit=1)
                if command == "/add":
                    if not rest:
                        raise PalError("/add: name a sound file: /add FILE")
                    path = rest[0]
                    check_file(path)
                    _add(talk, path)
                    heard.append(path)
                    continue
                if line == "/drop":
                    num_dropped = talk.drop_new()
                    heard = []
                    print(f"pal: taken back: {num_dropped}", file=sys.stderr)
                    continue
                if line.startswith("/"):
                    raise PalError(f"{command}: not a command; {HELP}")
                turn += 1
                _answer(talk, line, max_new_tokens, stdout, {"audio": heard, "turn": turn} if as_json else None)
                heard = []
            except PalError as error:
                if not is_terminal:  # a script must not go on as if nothing were amiss
                    raise
                hint = "; /drop takes back the sounds since the last answer" if heard else ""
                print(f"pal: error: {error}{hint}", file=sys.stderr)


def check_file(path: str) -> None:
    """That a sound file is there and can be decoded.

    Raises:
        PalError: it is an address, stdin, missing, or no sound.
    """
    if path == "-":
        raise PalError("`-`: `pal chat` reads questions from stdin, so sound must come from files")
    if "://" in path:
        raise PalError(f"{path}: an address, not a file, and `pal chat` fetches nothing; download it first")
    if not os.path.exists(path):
        raise PalError(f"{path}: no such file")
    checked_part(path)


def _lines(is_terminal: bool) -> Any:
    """Lines of stdin without the empty ones, to its end or `/quit`."""
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            if is_terminal:
                print(file=sys.stderr)
            return
        if line.strip() in ("/quit", "/exit"):
            return
        if line.strip():
            yield line.strip()


def _open(name: str, device: str) -> Any:
    loaded = models.load(name, device)  # before what is imported here: it imports in less time
    from pal_audio.model.conversation import Conversation

    return Conversation(*loaded)


def _add(talk: Any, path: str) -> None:
    from pal_audio.audio import SilentAudioWarning, TruncatedAudioWarning

    with warnings.catch_warnings():  # these were shown when the sound was checked
        warnings.simplefilter("ignore", SilentAudioWarning)
        warnings.simplefilter("ignore", TruncatedAudioWarning)
        talk.add(path)


def _answer(talk: Any, question: str, max_new_tokens: int, stdout: TextIO, record: dict[str, Any] | None) -> None:
    """Streams the answer to stdout, or prints it with its record as one line of JSON."""
    from pal_audio.model.confidence import calibration_of, warning_about

    start = time.perf_counter()
    streamer = text_streamer(talk.processor.tokenizer, stdout) if record is None else None
    calibration = calibration_of(talk.model.config)
    answer = talk.ask(question, max_new_tokens, streamer, record is not None or calibration is not None)
    warning = warning_about(answer, talk.probability, calibration)
    if warning is not None:
        print(f"pal: warning: {warning}", file=sys.stderr)
    if record is not None:
        seconds = round(time.perf_counter() - start, 3)
        line = {"answer": answer, "probability": round(talk.probability, 4), "question": question, **record,
                "kept_tokens": talk.num_kept, "seconds": seconds, "warning": warning}  # fmt: skip
        print(json.dumps(line), file=stdout, flush=True)
