"""Shipped recipes with everything large in them made tiny: hub ids become inline configurations, data become a few clips."""

import json
from pathlib import Path
from typing import Any

import soundfile

from pal_audio.data.manifest import AudioPart, Example, Message, TextPart, write_manifest
from pal_audio.data.sources import ManifestsConfig, SourceConfig
from pal_audio.training.recipe import Recipe, load_recipe
from tests.encoders.cases import CASES
from tests.tiny import RATE_HZ, noise

_LLM = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048, "tokenizer": {"vocab_size": 300},
}  # fmt: skip
_FAMILY_OF = {"meta-llama/": "llama", "Qwen/Qwen2.5": "qwen2"}
_ENCODER_OF = {name: CASES[name] for name in ("whisper", "sslam", "clap", "conv")} | {"transformers": CASES["ast"]}
_NUM_CLIPS = 4


def overrides(path: Path, folder: Path, num_steps: int = 2) -> list[str]:
    """What `--set` must say to run a recipe in seconds.

    Args:
        path: the recipe.
        folder: where its manifests and clips are made.
        num_steps: of each stage.
    """
    recipe = load_recipe(path)
    changes: dict[str, Any] = {}
    if recipe.model.llm is not None:
        changes["model.llm"] = tiny_llm(recipe.model.llm)
    if recipe.adapter is not None and recipe.adapter.type == "qlora":
        changes["model.llm"] |= {"hidden_size": 64, "intermediate_size": 128}  # whole blocks of 64 weights
    if recipe.model.encoder is not None:
        changes["model.encoder"] = tiny_encoder(recipe.model.encoder)
    for name, fields in (recipe.model.encoders or {}).items():
        changes[f"model.encoders.{name}"] = tiny_encoder(fields)
    for number in range(len(recipe.stages)):
        changes |= {f"stages.{number}.epochs": None, f"stages.{number}.steps": num_steps, f"stages.{number}.batch_size": 2}
    changes |= tiny_data(recipe, folder)
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def tiny_encoder(fields: dict[str, Any]) -> dict[str, Any]:
    """A fresh one of the same type, frozen or not as it was."""
    return _ENCODER_OF[fields["type"]] | {"frozen": fields.get("frozen", False)}


def tiny_llm(llm: str | dict[str, Any]) -> dict[str, Any]:
    """An inline configuration of the same family."""
    if isinstance(llm, dict):
        return {"model_type": llm["model_type"], **_LLM}
    family = next(family for start, family in _FAMILY_OF.items() if llm.startswith(start))
    return {"model_type": family, **_LLM}


def tiny_data(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Manifests of a few clips for each that the recipe names, or a few scenes."""
    if not isinstance(recipe.data, ManifestsConfig):
        return {"data.num_train": 4, "data.num_test": 2, "data.seconds": 2.0}
    changes: dict[str, Any] = {}
    for number, source in enumerate(recipe.data.train):
        assert isinstance(source, SourceConfig)
        changes[f"data.train.{number}.path"] = str(write_clips(folder, f"train-{number}", _NUM_CLIPS))
    for number in range(len(recipe.data.test)):
        changes[f"data.test.{number}"] = str(write_clips(folder, f"test-{number}", 2))
    return changes


def write_clips(folder: Path, name: str, num_clips: int) -> Path:
    """A manifest of short noises and their answers."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number in range(num_clips):
        file = folder / f"{name}-{number}.wav"
        soundfile.write(file, noise(0.4, seed=number), RATE_HZ)
        question = [AudioPart(path=file.name), TextPart(text="what sound is this?")]
        answer = Message(role="assistant", content=("a bell", "a dog")[number % 2])
        examples.append(Example(id=file.stem, messages=[Message(role="user", content=question), answer], task="name"))
    write_manifest(folder / f"{name}.jsonl", examples)
    return folder / f"{name}.jsonl"
