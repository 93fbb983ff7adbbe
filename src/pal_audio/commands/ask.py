"""`pal ask`: a question about sound files, the answer on stdout."""

import contextlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from pal_audio.commands import models
from pal_audio.errors import PalError

EXAMPLE = 'Example: pal ask dog.wav "What do you hear?"'
AUDIO_EXTENSIONS = (
    *(".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mka", ".mkv", ".mov", ".mp2", ".mp3"),
    *(".mp4", ".oga", ".ogg", ".opus", ".wav", ".weba", ".webm", ".wma"),
)
CHECK_RATE_HZ = 16_000  # any rate does: the sound is decoded to report a bad file before a model is loaded


def ask(
    words: Annotated[
        list[str], typer.Argument(metavar="AUDIO... QUESTION", help="Sound files, `-` for stdin; the question last, in quotes.")
    ],
    model: models.ModelOption = None,
    device: models.DeviceOption = "auto",
    max_new_tokens: models.MaxNewTokensOption = 256,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it is made.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: answer, probability, seconds, model, audio, question, warning.")
    ] = False,
) -> None:
    """Asks a question about one or more sound files."""
    if as_json and stream:
        raise PalError("--json and --stream exclude each other: a JSON object is printed when it is complete")
    paths, question = split_words(words)
    sounds = [checked_part(path) for path in paths]
    choice = models.choose(model)
    models.announce(choice)
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not mix with the answer
        messages = [{"role": "user", "content": [*sounds, {"type": "text", "text": question}]}]
        record = _answer(choice.model, device, messages, max_new_tokens, stdout if stream else None, as_json)
    warning = record.pop("warning")
    if warning is not None:
        print(f"pal: warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps({**record, "model": choice.model, "audio": paths, "question": question, "warning": warning}))
    elif not stream:
        print(record["answer"])


def split_words(words: list[str]) -> tuple[list[str], str]:
    """Parts the arguments into sound files and the question, which stands last.

    Raises:
        PalError: the question, or every sound, is missing; a file is not there.
    """
    *paths, question = words
    if looks_like_sound(question):
        raise PalError(
            f"the last argument, {question}, is a sound file: was the question forgotten? "
            f'Write it last, in quotes: pal ask {" ".join(words)} "What do you hear?"'
        )
    if not question.strip():
        raise PalError("the question is empty")
    if not paths:
        raise PalError(f'a sound file is missing before the question: pal ask FILE "{question}"')
    for path in paths:
        if "://" in path:
            raise PalError(f"{path}: an address, not a file, and `pal ask` fetches nothing; download it first")
        if path != "-" and not os.path.exists(path):
            hint = "" if looks_like_sound(path) else " (if it belongs to the question, put the question in quotes)"
            raise PalError(f"{path}: no such file{hint}")
    if paths.count("-") > 1:
        raise PalError("`-` stands for stdin and can be given once")
    return paths, question


def looks_like_sound(word: str) -> bool:
    """True for a file that exists, stdin's `-`, and any name with the extension of a sound."""
    return word == "-" or os.path.isfile(word) or Path(word).suffix.lower() in AUDIO_EXTENSIONS


def checked_part(path: str) -> dict[str, Any]:
    """The message part of a sound that was decoded once, so that a bad file is reported before a model is loaded.

    Raises:
        AudioError: the sound cannot be decoded.
    """
    from pal_audio.audio import MAX_BYTES, load_audio

    if path != "-":
        load_audio(path, CHECK_RATE_HZ)
        return {"type": "audio", "path": path}
    # stdin can be read once, so its bytes are kept; one byte too many is refused.
    content = {"bytes": sys.stdin.buffer.read(MAX_BYTES + 1), "path": "<stdin>"}
    load_audio(content, CHECK_RATE_HZ)
    return {"type": "audio", "audio": content}


def _answer(
    name: str,
    device: str,
    messages: list[dict[str, Any]],
    max_new_tokens: int,
    stream_to: TextIO | None,
    with_probability: bool,
) -> dict[str, Any]:
    """The greedy answer, a warning if there is one, and the seconds it took with the model already loaded.

    Its probability too, where it is shown or the model has a calibration: that takes the logits of every step.
    """
    device = models.pick_device(device)
    model, processor = models.load(name, device)  # before what is imported here: it imports in less time
    import torch

    from pal_audio.audio import SilentAudioWarning, TruncatedAudioWarning
    from pal_audio.model.confidence import calibration_of, probability_of, warning_about

    calibration = calibration_of(model.config)
    start = time.perf_counter()
    with warnings.catch_warnings():  # these were shown when the sounds were checked
        warnings.simplefilter("ignore", SilentAudioWarning)
        warnings.simplefilter("ignore", TruncatedAudioWarning)
        inputs = processor.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    inputs = inputs.to(device)
    streamer = None if stream_to is None else text_streamer(processor.tokenizer, stream_to)
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer,
            return_dict_in_generate=True, output_logits=with_probability or calibration is not None,
        )  # fmt: skip
    new_tokens = output.sequences[0, inputs["input_ids"].shape[1] :]
    probability = None if output.logits is None else probability_of(output)
    answer = processor.tokenizer.decode(new_tokens, skip_special_tokens=True).strip()
    return {
        "answer": answer,
        "probability": None if probability is None else round(probability, 4),
        "warning": warning_about(answer, probability, calibration),
        "seconds": round(time.perf_counter() - start, 3),
    }


def text_streamer(tokenizer: Any, stream_to: TextIO) -> Any:
    """A text streamer of transformers that writes to a given stream instead of whatever stdout is by then."""
    from transformers import TextStreamer

    class StreamTo(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(text, end="\n" if stream_end else "", flush=True, file=stream_to)

    return StreamTo(tokenizer, skip_prompt=True, skip_special_tokens=True)
