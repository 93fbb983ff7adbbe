"""Listen to a growing file or a microphone and ask a question every few seconds; what was heard is never encoded again.

python examples/listen.py FILE --every-s 10 --question "What do you hear?"       ends when FILE has not grown for --patience-s
python examples/listen.py --microphone                                          needs: pip install sounddevice

The model's connectors must work locally (`mlp`, or `pool` with tokens_per_s), and `positions: zero` for a stream of any length.
"""

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np

from pal_audio.audio import load_audio
from pal_audio.commands.models import choose, load, pick_device
from pal_audio.errors import PalError
from pal_audio.model.conversation import answer_about
from pal_audio.model.streaming import check_local, next_boundary_s


def growing_file(path: str, rate_hz: int, patience_s: float, poll_s: float = 0.5) -> Iterator[np.ndarray]:
    """What a file gains from poll to poll, float32 mono; the file is decoded whole each time, which is plain and exact."""
    heard, grown_at = 0, time.monotonic()
    while True:
        wave = load_audio(path, rate_hz)
        if len(wave) > heard:
            yield wave[heard:]
            heard, grown_at = len(wave), time.monotonic()
        elif time.monotonic() - grown_at >= patience_s:
            return
        else:
            time.sleep(poll_s)


def microphone(rate_hz: int) -> Iterator[np.ndarray]:
    """Half-seconds of the default microphone until Ctrl-C, float32 mono."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the package is there, PortAudio is not
        raise PalError(f"--microphone needs the package sounddevice: pip install sounddevice ({error})") from error
    with sounddevice.InputStream(samplerate=rate_hz, channels=1, dtype="float32") as stream:
        while True:
            yield stream.read(rate_hz // 2)[0][:, 0]


def listen(model, processor, sound: Iterator[np.ndarray], question: str, every_s: float) -> Iterator[tuple[float, str]]:
    """Seconds heard and the answer then, every `every_s` seconds of sound at the next legal cut, and once at the end."""
    audio = model.config.audio
    check_local(audio)
    if len(processor.sampling_rates_hz) > 1:
        raise PalError(f"listening needs encoders of one rate, these hear at {processor.sampling_rates_hz} Hz")
    (rate_hz,) = processor.sampling_rates_hz
    memory, waiting, encoded, asked_s, last = None, np.zeros(0, np.float32), 0, 0.0, None

    def take(num_samples: int):
        features = processor.collate_clips([processor.clip(waiting[:num_samples], rate_hz)])
        return model.encode_audio(**features) if memory is None else model.append_audio(memory, **features)

    for piece in sound:
        waiting = np.concatenate([waiting, piece])
        while (cut_s := next_boundary_s(audio, (encoded + 1) / rate_hz)) is not None:
            step = round(cut_s * rate_hz) - encoded
            if step > len(waiting):
                break
            memory = take(step)
            waiting, encoded, last = waiting[step:], encoded + step, None
            if encoded / rate_hz >= asked_s + every_s:
                asked_s = encoded / rate_hz
                last = answer_about(model, processor, memory, question)
                yield asked_s, last
    if len(waiting):
        memory, encoded, last = take(len(waiting)), encoded + len(waiting), None
    if memory is not None and last is None:
        yield encoded / rate_hz, answer_about(model, processor, memory, question)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", help="a sound file that may still grow")
    parser.add_argument("--microphone", action="store_true")
    parser.add_argument("--question", default="What do you hear?")
    parser.add_argument("--every-s", type=float, default=10.0)
    parser.add_argument("--patience-s", type=float, default=5.0)
    parser.add_argument("--model")
    options = parser.parse_args(arguments)
    try:
        if (options.file is None) == (not options.microphone):
            raise PalError("give a FILE or --microphone")
        if not (options.every_s > 0 and options.patience_s >= 0):
            raise PalError("--every-s: give seconds greater than 0; --patience-s: 0 or more")
        if not options.question.strip():
            raise PalError("--question is empty")
        model, processor = load(choose(options.model).model, pick_device("auto"))
        rate_hz = processor.sampling_rates_hz[0]
        sound = microphone(rate_hz) if options.microphone else growing_file(options.file, rate_hz, options.patience_s)
        for heard_s, answer in listen(model, processor, sound, options.question, options.every_s):
            print(f"{heard_s:8.1f} s  {answer}", flush=True)
    except PalError as error:
        print(f"listen: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
