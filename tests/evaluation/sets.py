"""Every task's set in its official layout, small: enough items for an interval, one clip missing, one that does not decode.

A maker writes below a folder and gives ROOT. Which clip is missing or broken is known by its name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

GONE, BROKEN = "gone", "broken"
NUM = 12  # items of nearly every set
LABELS = ("dog bark", "rain", "siren")
_made = iter(range(10**9))


def sound(path: Path) -> str:
    """A twentieth of a second, different each time; nothing where the name says so, or bytes that are no sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if BROKEN in path.stem:
        path.write_bytes(b"RIFF, but no sound follows")
    elif GONE not in path.stem:
        wave = 0.1 * np.random.default_rng(next(_made)).standard_normal(400)
        soundfile.write(path, wave, 8000, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path.name


def names(num: int = NUM) -> list[str]:
    """Names of clips: the fifth does not decode, the eighth is not there."""
    return [f"c{number}{ {4: BROKEN, 7: GONE}.get(number, '') }" for number in range(num)]


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def label(number: int) -> str:
    return LABELS[number % len(LABELS)]


def words(number: int) -> str:
    """A text that shares no word with another number's."""
    letter = "bcdfghjklmnp"[number]
    return " ".join(f"{letter}{vowel}{letter}" for vowel in "aeo")


def esc(root: Path) -> Path:
    rows = []
    for number, name in enumerate(names()):
        file = f"{number % 5 + 1}-{name}-A-{number % 3}.wav"
        sound(root / "audio" / file)
        rows.append(f"{file},{number % 5 + 1},{number % 3},{label(number).replace(' ', '_')},True,{name},A")
    text(root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows)
    return root


def fsd50k(root: Path) -> Path:
    rows = [f'{name},"{label(n).replace(" ", "_")},{label(n + 1).replace(" ", "_")}",/m/1' for n, name in enumerate(names())]
    text(root / "FSD50K.ground_truth" / "eval.csv", "fname,labels,mids", *rows)
    for name in names():
        sound(root / "FSD50K.eval_audio" / f"{name}.wav")
    return root


def vggsound(root: Path) -> Path:
    text(root / "vggsound.csv", *(f'{name},{n},"{label(n)}, indoors",test' for n, name in enumerate(names())))
    for n, name in enumerate(names()):
        sound(root / "audio" / f"{name}_{n:06d}.wav")
    return root


def folder(root: Path) -> Path:
    for number, name in enumerate(names()):
        sound(root / label(number).replace(" ", "_") / f"{name}.wav")
    return root


def _table(root: Path, header: str, cells: Callable[[int], str]) -> Path:
    rows = [f"{name}.wav,{cells(number)}" for number, name in enumerate(names())]
    text(root / "mine.csv", f"path,{header}", *rows)
    for name in names():
        sound(root / f"{name}.wav")
    return root / "mine.csv"


def csv(root: Path) -> Path:
    return _table(root, "label", label)


def csv_tags(root: Path) -> Path:
    return _table(root, "label", lambda number: f"{label(number)}; {label(number + 1)}")


def csv_answers(root: Path) -> Path:
    return _table(root, "question,answer", lambda number: f"What is it?,{label(number)}.")


def audiocaps(root: Path) -> Path:
    rows = [f"{5 * n + k},{name},{n},Caption {k} of {label(n)} in place{n}" for n, name in enumerate(names()) for k in range(5)]
    text(root / "test.csv", "audiocap_id,youtube_id,start_time,caption", *rows)
    for n, name in enumerate(names()):
        sound(root / f"{name}_{n}.wav")
    return root


def clotho(root: Path) -> Path:
    header = "file_name," + ",".join(f"caption_{k}" for k in range(1, 6))
    rows = [f"{name}.wav," + ",".join(f"Words {k} on {label(n)} place{n}" for k in range(5)) for n, name in enumerate(names())]
    text(root / "clotho_captions_evaluation.csv", header, *rows)
    for name in names():
        sound(root / "evaluation" / f"{name}.wav")
    return root


def _manifest(root: Path, question: Callable[[int], str], answer: Callable[[int], str], **meta: Callable[[int], object]) -> Path:
    rows = []
    for number, name in enumerate(names()):
        sound(root / f"{name}.wav")
        content = [{"type": "audio", "path": f"{name}.wav"}, {"type": "text", "text": question(number)}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer(number)}]
        more = {key: value(number) for key, value in meta.items()}
        rows.append(json.dumps({"id": name, "messages": messages, "task": "kind", "meta": more}))
    text(root / "test.jsonl", *rows)
    return root / "test.jsonl"


def captions(root: Path) -> Path:
    return _manifest(root, lambda n: "Describe it.", lambda n: f"A {label(n)} place{n}",
                     references=lambda n: [f"A {label(n)} place{n}", f"Some {label(n)} at place{n}"])  # fmt: skip


def answers(root: Path) -> Path:
    return _manifest(root, lambda n: f"Question {n % 2}?", label)


def scenes(root: Path) -> Path:
    answers(root)
    text(root / "mix.json", "{}")
    return root


def transcription(root: Path) -> Path:
    return _manifest(root, lambda n: "What is said?", words)


def choices(root: Path) -> Path:
    return _manifest(root, lambda n: f"Which? {', '.join(LABELS)}", label, choices=lambda n: list(LABELS))


def _choice(number: int, name: str, **fields: str) -> dict[str, object]:
    return {"id": name, "question": "What is it?", "choices": list(LABELS), "answer": label(number), **fields}


def mmau(root: Path) -> Path:
    rows = [
        _choice(n, name, audio_id=f"./test-mini-audios/{name}.wav", task=("sound", "music")[n % 2], difficulty="easy")
        for n, name in enumerate(names())
    ]
    text(root / "mmau-test-mini.json", json.dumps(rows))
    for name in names():
        sound(root / "test-mini-audios" / f"{name}.wav")
    return root


def mmar(root: Path) -> Path:
    rows = [_choice(n, name, audio_path=f"./audio/{name}.wav", modality="sound") for n, name in enumerate(names())]
    text(root / "MMAR-meta.jsonl", *map(json.dumps, rows))
    for name in names():
        sound(root / "audio" / f"{name}.wav")
    return root


def clothoaqa(root: Path) -> Path:
    said = (("yes", "yes", "no"), ("rain", "water", "rain"), ("no", "no", "no"))
    rows = [f"{name}.wav,Question {n}?,{answer},yes" for n, name in enumerate(names()) for answer in said[n % 3]]
    text(root / "clotho_aqa_test.csv", "file_name,QuestionText,answer,confidence", *rows)
    for name in names():
        sound(root / "audio_files" / f"{name}.wav")
    return root


def librispeech(root: Path) -> Path:
    for number, name in enumerate(names()):
        chapter = root / "LibriSpeech" / "test-clean" / str(number) / "121"
        sound(chapter / f"{number}-121-{name}.flac")
        text(chapter / f"{number}-121.trans.txt", f"{number}-121-{name} {words(number).upper()}")
    return root


def fsdd(root: Path) -> Path:
    for number in range(NUM):
        speaker = {4: BROKEN, 7: GONE}.get(number, f"s{number % 2}")
        path = root / "recordings" / f"{number % 3}_{speaker}_{number % 4}.wav"
        sound(path)
        if speaker == GONE:
            path.symlink_to("nowhere.wav")  # a name without its file
    return root


def _ltu(root: Path, output: Callable[[int], str]) -> Path:
    rows = [
        {"instruction": "Close-ended question: Write an audio caption describing the sound.", "input": "",
         "audio_id": f"/theirs/{name}.wav", "dataset": "x", "task": "cla", "output": output(number)}
        for number, name in enumerate(names())
    ]  # fmt: skip
    text(root / "vocalsound_test.json", json.dumps(rows))
    for name in names():
        sound(root / f"{name}.wav")
    return root / "vocalsound_test.json"


def ltu(root: Path) -> Path:
    return _ltu(root, lambda number: f"Label:{label(number)}")


def ltu_tags(root: Path) -> Path:
    return _ltu(root, lambda number: f"{label(number)}; {label(number + 1)}")


@dataclass(frozen=True)
class Case:
    """A task and the maker of its set."""

    task: str
    make: Callable[[Path], Path]


CASES = (
    Case("esc10", esc),
    Case("esc50", esc),
    Case("fsd50k", fsd50k),
    Case("vggsound", vggsound),
    Case("folder", folder),
    Case("csv", csv),
    Case("csv-tags", csv_tags),
    Case("csv-answers", csv_answers),
    Case("audiocaps", audiocaps),
    Case("clotho", clotho),
    Case("captions", captions),
    Case("mmau", mmau),
    Case("mmar", mmar),
    Case("choices", choices),
    Case("clothoaqa", clothoaqa),
    Case("librispeech", librispeech),
    Case("transcription", transcription),
    Case("fsdd", fsdd),
    Case("fsdd-strings", fsdd),
    Case("ltu-json", ltu),
    Case("ltu-json-tags", ltu_tags),
    Case("scenes", scenes),
    Case("answers", answers),
)
