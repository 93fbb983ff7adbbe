"""The held-out sound as other recordings would bring it: coded, resampled, quiet, narrow.

    OUT/robust/tests/audio/CONDITION/ID.*    a part of the questions' sound, degraded
    OUT/robust/tests/{exact,words}.jsonl     the same questions about it; index.json is written last

Which questions: the first `MOST` of each task. Source: our choice.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from benchmarks.lab.questions import read_json

from pal_audio.audio import load_audio
from pal_audio.data.manifest import AudioPart, Example, Message, read_manifest, write_manifest, write_text
from pal_audio.data.pool import in_processes

MOST = 100
RATE_HZ = 16_000
_CHUNK = 20  # questions that a process degrades before it reports
_MP3_KBIT_S = 64
_MP3_RANGE_KBIT_S = 8, 160  # of MPEG-2 layer III, which 16 kHz is; libsndfile's compression level falls from its end to its start
Wave = npt.NDArray[np.float32]


def write_conditions(tests: Path, out: Path, roots: Sequence[Path], workers: int = 1) -> dict[str, str]:
    """Write the degraded sound and its questions.

    Args:
        tests: OUT/tests.
        out: OUT/robust/tests.
        roots: folders that sound lies in.
        workers: processes that do it.

    Returns:
        Conditions that cannot be made here, with the reason.
    """
    index = read_json(tests / "index.json")
    skipped = {name: reason for name in CONDITIONS if (reason := unavailable(name)) is not None}
    tasks: dict[str, Any] = {}
    for file in ("exact", "words"):
        questions = {example.id: example for example in read_manifest(tests / f"{file}.jsonl", roots)}
        wanted: list[tuple[str, Example]] = []
        for task, told in index["tasks"].items():
            numbers = [number for number, id in enumerate(told["ids"][:MOST]) if id in questions]
            for condition in [name for name in CONDITIONS if name not in skipped] if numbers else ():
                wanted += [(condition, questions[told["ids"][number]]) for number in numbers]
                ids = [f"{condition}: {told['ids'][number]}" for number in numbers]
                kept = {key: told[key] for key in ("kind", "group", "metric")}
                tasks[f"{condition}: {task}"] = {**kept, "ids": ids, "numbers": numbers, "slices": {}}
        chunks = [(start, wanted[start : start + _CHUNK]) for start in range(0, len(wanted), _CHUNK)]
        made = {chunk[0]: examples for chunk, examples in in_processes(_degrade, out / "audio", chunks, workers)}
        write_manifest(out / f"{file}.jsonl", [example for start in sorted(made) for example in made[start]])
    write_text(out / "index.json", json.dumps({"tasks": tasks}) + "\n")
    return skipped


def unavailable(condition: str) -> str | None:
    """Why a condition cannot be made on this machine, or None."""
    if condition.startswith("mp3") and "MP3" not in soundfile.available_formats():
        return f"libsndfile {soundfile.__libsndfile_version__} has no MP3 encoder"
    return None


def _degrade(audio: Path, chunk: tuple[int, list[tuple[str, Example]]]) -> list[Example]:
    return [_degraded(example, condition, audio) for condition, example in chunk[1]]


def _degraded(example: Example, condition: str, audio: Path) -> Example:
    ending, write = CONDITIONS[condition]
    folder = audio / condition.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    messages: list[Message] = []
    for message in example.messages:
        parts: list[Any] = []
        for number, part in enumerate(message.parts):
            if not isinstance(part, AudioPart):
                parts.append(part)
                continue
            wave = load_audio(part.path, RATE_HZ, start_s=part.start_s, end_s=part.end_s)
            path = folder / f"{example.id.replace('/', '_')}-{number}.{ending}"
            write(path, np.asarray(wave, dtype=np.float32))
            parts.append(AudioPart(path=str(path.resolve())))
        messages.append(Message(role=message.role, content=parts))
    return example.model_copy(update={"id": f"{condition}: {example.id}", "messages": messages})


def _mp3(path: Path, wave: Wave) -> None:
    low, high = _MP3_RANGE_KBIT_S
    level = (high - _MP3_KBIT_S) / (high - low)
    soundfile.write(path, wave, RATE_HZ, format="MP3", subtype="MPEG_LAYER_III", compression_level=level, bitrate_mode="CONSTANT")


def _stereo(path: Path, wave: Wave) -> None:
    one = soxr.resample(wave, RATE_HZ, 44_100)
    soundfile.write(path, np.stack([one, one], axis=1), 44_100, subtype="PCM_16")


def _quiet(path: Path, wave: Wave) -> None:
    soundfile.write(path, wave * 10 ** (-20 / 20), RATE_HZ, subtype="PCM_16")


def _narrow(path: Path, wave: Wave) -> None:
    soundfile.write(path, soxr.resample(wave, RATE_HZ, 8_000), 8_000, subtype="PCM_16")


CONDITIONS: dict[str, tuple[str, Callable[[Path, Wave], None]]] = {
    "mp3 64k": ("mp3", _mp3),
    "44.1 kHz stereo": ("flac", _stereo),
    "-20 dB": ("flac", _quiet),
    "8 kHz": ("flac", _narrow),
}
