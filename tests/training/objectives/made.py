"""Tiny sounds with labels and transcripts, tiny texts, and recipes that learn them in seconds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, write_manifest
from tests.tiny import RATE_HZ

TONES_HZ = {"a": 400, "b": 1200, "c": 3000}
ENCODER: dict[str, Any] = {
    "type": "conv", "num_mels": 16, "channels": [4, 8], "time_strides": [2, 2], "hidden_size": 16, "num_layers": 1,
    "num_heads": 2, "dropout": 0.0, "spec_augment": False,
}  # fmt: skip
LLM: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tokenizer": {"vocab_size": 300},
}  # fmt: skip


def clip(path: Path, letters: str, seed: int) -> None:
    """A tone of 0.2 s for each letter, with 0.1 s of faint noise between them."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(0.2 * RATE_HZ)) / RATE_HZ
    gap = np.zeros(int(0.1 * RATE_HZ))
    pieces = [part for letter in letters for part in (gap, np.sin(2 * np.pi * TONES_HZ[letter] * time + rng.random()))]
    wave = 0.3 * np.concatenate([*pieces, gap])
    soundfile.write(path, wave + 0.01 * rng.standard_normal(len(wave)), RATE_HZ)


def example(
    folder: Path, name: str, letters: str, answer: str | None, seed: int = 0, task: str = "spell", **meta: Any
) -> Example:
    clip(folder / f"{name}.wav", letters, seed)
    messages = [Message(role="user", content=[AudioPart(path=f"{name}.wav"), TextPart(text="Which letters?")])]
    messages += [Message(role="assistant", content=answer)] if answer else []
    return Example(id=name, messages=messages, task=task, meta=meta)


def manifest(folder: Path, name: str, examples: list[Example]) -> str:
    write_manifest(folder / f"{name}.jsonl", examples)
    return str(folder / f"{name}.jsonl")


def spelt(folder: Path, name: str, num: int, seed: int) -> str:
    """Clips of one to three letters; their text has capitals and a stop, which are not learnt."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice([*TONES_HZ], rng.integers(1, 4))) for _ in range(num)]
    return manifest(folder, name, [example(folder, f"{name}-{i}", text, f"{text.upper()}.", i) for i, text in enumerate(texts)])


def texts(path: Path, num: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    words = [["the cat", "a dog", "one bird"], ["sits on", "looks at", "runs to"], ["the mat", "a tree", "my house"]]
    lines = [" ".join(str(rng.choice(choices)) for choices in words) for _ in range(num)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def recipe(folder: Path, model: dict[str, Any], train: list[Any], test: list[Any], *stages: dict[str, Any], **more: Any) -> Path:
    """A recipe file over manifests and texts; `stages` get a name, a batch size and a constant schedule."""
    plain = [{"batch_size": 8, "schedule": "constant", "name": f"stage{i}", **stage} for i, stage in enumerate(stages)]
    content = {
        "name": "made",
        "model": model,
        "data": {"type": "manifests", "train": train, "test": test},
        "stages": plain,
        **more,
    }
    path = folder / "made.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def scores(run: Path) -> list[dict[str, float]]:
    return [item["scores"] for item in json.loads((run / "scores.json").read_text())["stages"]]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
