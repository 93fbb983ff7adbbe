"""Every importer's set, made small in the official layout. One maker a set: it writes below a folder and nothing comes back.

Of each set exactly one item's audio is not there, so that every test also sees one item left out.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

GONE = "gone"  # in the name of the clip that is not written


def sound(path: Path) -> None:
    """A tenth of a second; libsndfile has no place for it under some endings, so those files are WAV inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if GONE not in path.name:
        wave = 0.1 * np.sin(np.arange(800) / 5)
        soundfile.write(path, wave, 8000, format="FLAC" if path.suffix == ".flac" else "WAV")


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def esc(root: Path) -> None:
    rows = []
    for fold in range(1, 6):
        for target, (category, is_esc10) in enumerate([("dog", True), ("church_bells", False)]):
            name = f"{fold}-00001-{GONE if fold == 1 and target == 0 else 'A'}-{target}.wav"
            sound(root / "audio" / name)
            rows.append(f"{name},{fold},{target},{category},{is_esc10},00001,A")
    text(root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", *rows)


def fsdd(root: Path) -> None:
    for index in (0, 5, 44, 45):
        sound(root / "recordings" / f"3_theo_{index}.wav")
    (root / "recordings" / "4_theo_6.wav").symlink_to("gone.wav")  # a name without its file


def librispeech(root: Path) -> None:
    for subset, names in {"train-clean-100": ["0", "1"], "dev-other": ["0"], "test-clean": ["0", GONE]}.items():
        chapter = root / "LibriSpeech" / subset / "84" / "121"
        for name in names:
            sound(chapter / f"84-121-{name}.flac")
        text(chapter / "84-121.trans.txt", *(f"84-121-{name} GO DO YOU HEAR" for name in names))


def audiocaps(root: Path) -> None:
    header = "audiocap_id,youtube_id,start_time,caption"
    text(root / "train.csv", header, '1,-bCdEfGhIjK,30,"A dog barks, twice"', "1,-bCdEfGhIjK,30,A dog barks", "2,ABC,0,Rain")
    text(root / "val.csv", header, *(f"{n},VAL,5,Caption {n}" for n in range(3, 8)), f"8,{GONE},5,Nothing")
    text(root / "test.csv", header, *(f"{n},TST,{s},Caption {n}" for n, s in ((9, 5), (10, 5), (11, 60))))
    for name in ("train/-bCdEfGhIjK_30.wav", "train/YABC.wav", "val/VAL.m4a", "test/TST_000005.flac", "test/TST_60.wav"):
        sound(root / "audio" / name)


def clotho(root: Path) -> None:
    header = "file_name," + ",".join(f"caption_{n}" for n in range(1, 6))
    for part, names in {"development": ["door 3.wav"], "validation": ["ä.wav"], "evaluation": ["b.wav", f"{GONE}.wav"]}.items():
        rows = [f'{name},"One, two",Three,Four,Five,Six' for name in names]
        text(root / f"clotho_captions_{part}.csv", header, *rows)
        for name in names:
            sound(root / part / name)


def openaqa(root: Path) -> None:
    def item(audio_id: str, **changes: Any) -> dict[str, Any]:
        said = {"instruction": "Which sounds overlap?", "input": "", "audio_id": audio_id, "dataset": "as_20k"}
        return {**said, "task": "open-ended question", "output": "Rain and a car.", **changes}

    sound(root / "audioset" / "20k" / "clip_07.flac")
    sound(root / "clip_08.flac")
    train = [
        item("/data/x/audioset/20k/clip_07.flac"),
        item("clip_08.flac", input="hello"),
        item("empty"),
        item(f"/d/{GONE}.flac"),
    ]
    text(root / "openaqa_5.6M.json", json.dumps(train, indent=1))
    text(root / "audiocaps_test.json", json.dumps([item("/d/audioset/20k/clip_07.flac"), item("/clip_08.flac")]))


def choice(id: str, **changes: Any) -> dict[str, Any]:
    return {"id": id, "question": "What made the sound?", "choices": ["Bell", "Horn"], "answer": "Bell", **changes}


def mmau(root: Path) -> None:
    def item(id: str, folder: str = "test-mini-audios", **changes: Any) -> dict[str, Any]:
        said = {"audio_id": f"./{folder}/{id}.wav", "dataset": "AudioSet", "task": "sound", "category": "Reasoning"}
        return choice(id, **said | {"sub-category": "Source", "difficulty": "easy", "split": "test-mini"} | changes)

    mini = [item("a"), item("b", category=["Reasoning"]), item("c", answer="Drum"), item(GONE)]
    open_item = item("d", "test-audios")
    del open_item["answer"]
    text(root / "mmau-test-mini.json", json.dumps(mini))
    text(root / "mmau-test.json", json.dumps([open_item]))
    for name in ("a", "b", "c"):
        sound(root / "test-mini-audios" / f"{name}.wav")
    sound(root / "test-audios" / "d.wav")


def mmar(root: Path) -> None:
    items = [
        choice(id, audio_path=f"./audio/{id}.wav", modality="sound", category="Perception Layer", rubric=[{"name": "Cue"}, {}])
        for id in ("x_1", GONE)
    ]
    text(root / "MMAR-meta.jsonl", *map(json.dumps, items))
    sound(root / "audio" / "x_1.wav")


def fsd50k(root: Path) -> None:
    dev = ["64760,Electric_guitar,/m/1,train", '1,"Fill_(with_liquid),Water",/m/2,val', f"{GONE},Water,/m/2,train"]
    text(root / "FSD50K.ground_truth" / "dev.csv", "fname,labels,mids,split", *dev)
    text(root / "FSD50K.ground_truth" / "eval.csv", "fname,labels,mids", '2,"Bark,Dog,Animal",/m/3')
    for name in ("dev_audio/64760", "dev_audio/1", "eval_audio/2"):
        sound(root / f"FSD50K.{name}.wav")


def vggsound(root: Path) -> None:
    rows = ['---g-f,1,"railroad car, train wagon",train', "abc,30,people marching,test", f"{GONE},2,people marching,test"]
    text(root / "vggsound.csv", *rows)
    sound(root / "video" / "---g-f_000001.mp4")
    sound(root / "video" / "abc_30.wav")


def sharegpt(root: Path) -> None:
    def item(value: str, *audios: str, **changes: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "A dog."}]
        return {"conversations": turns, "audios": list(audios), **changes}

    factory = [{"role": "user", "content": "Compare <sound> with <sound>"}, {"role": "assistant", "content": "Same."}]
    train = [
        item("<audio>\nWhat is it?", "a.wav", id=7, system="Listen."),
        item("<audio>What?", f"{GONE}.wav"),
        item("No sound here."),
        item("<audio><audio>Two?", "a.wav"),  # a marker too many
        {"messages": factory, "sound": ["a.wav", "b.wav"]},
    ]
    text(root / "mine.json", json.dumps(train))
    text(root / "mine_val.jsonl", json.dumps(item("<audio>What?", "b.wav")))
    text(root / "dataset_info.json", json.dumps({"mine": {"formatting": "sharegpt"}}))
    for name in ("a.wav", "b.wav"):
        sound(root / name)


def plain_csv(root: Path) -> None:
    text(root / "calls.csv", "path,label", "a.wav,dog", '"b, c.wav",dog; rain', f"{GONE}.wav,dog")
    text(root / "said.csv", "path,start_s,end_s,question,answer,split", "a.wav,0,0.05,What?,A dog.,test", "a.wav,,,What?, ,test")
    for name in ("a.wav", "b, c.wav"):
        sound(root / name)


@dataclass(frozen=True)
class Case:
    """A set, what its import gives by split, and how many items are left out."""

    name: str
    make: Callable[[Path], None]
    num_examples: dict[str, int]
    num_left_out: int = 1
    looked_for: str = ""  # a word of the error for an empty folder


CASES = (
    Case("esc50", esc, {"train": 5, "val": 2, "test": 2}, looked_for="meta/esc50.csv"),
    Case("esc10", esc, {"train": 2, "val": 1, "test": 1}, looked_for="meta/esc50.csv"),
    Case("fsdd", fsdd, {"train": 2, "val": 1, "test": 1}, looked_for="recordings"),
    Case("librispeech", librispeech, {"train": 2, "val": 1, "test": 1}, looked_for="train-clean-100"),
    Case("audiocaps", audiocaps, {"train": 2, "val": 1, "test": 2}, looked_for="train.csv"),
    Case("clotho", clotho, {"train": 5, "val": 1, "test": 1}, looked_for="clotho_captions_development.csv"),
    Case("openaqa", openaqa, {"train": 3, "test": 2}, looked_for="*.json"),
    Case("mmau", mmau, {"test": 1, "test-mini": 2}, 2, looked_for="mmau-test-mini.json"),
    Case("mmar", mmar, {"test": 1}, looked_for="MMAR-meta.jsonl"),
    Case("fsd50k", fsd50k, {"train": 1, "val": 1, "test": 1}, looked_for="FSD50K.ground_truth/dev.csv"),
    Case("vggsound", vggsound, {"train": 1, "test": 1}, looked_for="vggsound.csv"),
    Case("sharegpt", sharegpt, {"train": 3, "val": 1}, 2, looked_for="*.json"),
    Case("csv", plain_csv, {"train": 2, "test": 1}, 2, looked_for="*.csv"),
)
