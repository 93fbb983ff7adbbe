"""Folders of trained parts: what they hold, that they load as the whole model, and that another base is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.model import PalForConditionalGeneration, load
from pal_audio.model.tokenizer import train_tokenizer
from pal_audio.training.run import train
from tests.encoders.cases import CASES, WHISPER
from tests.tiny import batch, llm_config, message, noise, tokenizer_texts
from tests.training.shrink import write_clips

RECIPE = """
name: tiny
save: trained
model:
  llm: {llm}
  preset: pal
  encoder: {{type: whisper, checkpoint: {encoder}, frozen: true}}
  summary: {{type: pool, num_tokens: 2}}
data: {{type: manifests, train: [{manifest}], test: [{manifest}]}}
stages:
  - {{name: first, train: {{connector: 1e-2, projector: 1e-2}}, steps: 2, batch_size: 2}}
  - {{name: second, train: {{connector: 1e-2, llm.norm: 1e-2}}, steps: 1, batch_size: 2}}
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a language model and an encoder as the hub has them; embedding and head are tied."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(tokenizer_texts(), 300)
    AutoModelForCausalLM.from_config(llm_config("llama", len(tokenizer), tie_word_embeddings=True)).save_pretrained(
        folder / "llm"
    )
    tokenizer.save_pretrained(folder / "llm")
    ids = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    WhisperModel(WhisperConfig(**WHISPER | {"num_mel_bins": 40}, **ids)).save_pretrained(folder / "encoder")
    WhisperFeatureExtractor(feature_size=40).save_pretrained(folder / "encoder")
    write_clips(folder, "clips", 4)
    return folder


def write_recipe(folder: Path, bases: Path) -> Path:
    text = RECIPE.format(llm=bases / "llm", encoder=bases / "encoder", manifest=bases / "clips.jsonl")
    (folder / "tiny.yaml").write_text(text)
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def runs(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run with either kind of final folder."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder, bases)
    return {save: train(recipe, [f"save={save}"], out=folder / save) / "final" for save in ("trained", "all")}


@pytest.fixture
def moved(runs: dict[str, Path], bases: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the bases and of the folder, which then names the copies."""
    shutil.copytree(bases, tmp_path / "bases")
    shutil.copytree(runs["trained"], tmp_path / "final")
    config = (tmp_path / "final" / "config.json").read_text().replace(str(bases), str(tmp_path / "bases"))
    (tmp_path / "final" / "config.json").write_text(config)
    return tmp_path / "final", tmp_path / "bases"


def logits(folder: Path) -> torch.Tensor:
    model, processor = load(folder)
    with torch.no_grad():
        result: torch.Tensor = model(**batch(processor, [message(noise(0.2))])).logits
    return result


def test_it_holds_what_was_trained_and_loads_as_the_whole(runs: dict[str, Path], bases: Path) -> None:
    stored = load_file(runs["trained"] / "model.safetensors")
    whole = load_file(runs["all"] / "model.safetensors")
    parameters = {name for name in stored if name.startswith("language_model.")}
    assert parameters
    assert all("norm" in name for name in parameters), "of the language model, what a stage trained"
    assert not any(name.startswith("encoders.") and name.endswith("weight") for name in stored)
    assert {name for name in whole if name.startswith(("streams.", "marker"))} <= set(stored)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in stored.items())
    config = json.loads((runs["trained"] / "config.json").read_text())
    assert config["bases"]["llm"]["name"] == str(bases / "llm")
    assert len(config["bases"]["llm"]["sha256"]) == len(config["bases"]["encoders"]["audio"]["sha256"]) == 64
    assert torch.equal(logits(runs["trained"]), logits(runs["all"]))
    one, other = (load(folder)[0].state_dict() for folder in runs.values())
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_it_is_small_and_pal_info_says_so(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    described = {}
    for save, folder in runs.items():
        capsys.readouterr()
        assert cli.main(["info", str(folder), "--json"]) == 0
        described[save] = json.loads(capsys.readouterr().out)["folder"]
    assert (described["trained"]["holds"], described["all"]["holds"]) == ("trained parts", "everything")
    assert described["trained"]["bases"]["llm"]["sha256"]
    sizes = [described[save]["bytes"] for save in ("trained", "all")]
    assert sizes == [sum(file.stat().st_size for file in runs[save].iterdir()) for save in ("trained", "all")]
    assert sizes[0] < 0.7 * sizes[1]


def test_export_makes_it_whole(moved: tuple[Path, Path], tmp_path: Path) -> None:
    folder, bases = moved
    expected = logits(folder)
    assert cli.main(["export", str(folder), str(tmp_path / "out")]) == 0
    shutil.rmtree(bases)
    assert torch.equal(logits(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text()).get("bases") is None
    with pytest.raises(PalError, match=r"needs its bases \(`bases` in config.json says where they lie\): model.llm"):
        load(folder)


def change_a_weight(folder: Path, number: int = 0) -> None:
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name in weights if "decoder" not in name and "norm" not in name)[number]
    weights[name].view(-1)[0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["llm", "encoder"])
def test_another_base_is_refused_in_one_line(moved: tuple[Path, Path], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, bases = moved
    load(folder)
    change_a_weight(bases / part)
    capsys.readouterr()
    assert cli.main(["info", str(folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert f"the base '{bases / part}' is not the one that it was trained on (its SHA-256 differs)" in lines[0]


def test_what_is_cut_out_or_put_in_is_refused(moved: tuple[Path, Path]) -> None:
    folder, _ = moved
    file = folder / "model.safetensors"
    kept = load_file(file)
    for change, words in (
        ({"marker": None}, "lacks 1 weights of this model, the first is 'marker'"),
        ({"stranger": torch.zeros(2)}, "1 tensors are of no part of this model, the first is 'stranger'"),
        ({"marker": torch.zeros(3)}, "'marker' has shape"),
        ({next(name for name in kept if name.startswith("language_model.")): None}, "SHA-256 differs"),
    ):
        tensors: dict[str, Any] = kept | change
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, metadata={"format": "pt"})
        with pytest.raises(PalError, match=words):
            load(folder)
    file.write_bytes(b"damaged")
    with pytest.raises(PalError, match="cannot be read"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    config["bases"]["lm"] = config["bases"].pop("llm")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PalError, match="did you mean 'llm'"):
        load(folder)


def test_options_of_from_pretrained(runs: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(runs["trained"], dtype="bfloat16")
    assert isinstance(model, PalForConditionalGeneration)
    assert model.dtype == torch.bfloat16
    with pytest.raises(PalError, match="'device_map' cannot be used; make it whole by `pal export`"):
        PalForConditionalGeneration.from_pretrained(runs["trained"], device_map="auto")


def test_an_adapter_is_stored_and_its_base_is_not(bases: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, bases)
    settings = ["adapter={type: lora, r: 2}", "stages.1.train={llm.adapter: 1e-2}"]
    small = train(recipe, settings, out=tmp_path / "small") / "final"
    whole = train(recipe, [*settings, "save=all"], out=tmp_path / "whole") / "final"
    stored = load_file(small / "model.safetensors")
    assert any(".lora_B." in name for name in stored)
    assert not any(name.startswith("language_model.") and ".lora_" not in name for name in stored)
    assert torch.equal(logits(small), logits(whole))
    assert cli.main(["export", str(small), str(tmp_path / "merged"), "--merge"]) == 0
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(whole))


def test_a_trained_language_model_is_stored_whole_with_its_tied_head_once(bases: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, bases)
    folder = train(recipe, ["stages.1.train={llm: 1e-2}"], out=tmp_path / "run") / "final"
    stored = load_file(folder / "model.safetensors")
    assert sum("embed_tokens" in name or "lm_head" in name for name in stored) == 1
    model, _ = load(folder)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[union-attr]
    assert logits(folder).isfinite().all()


def test_buffers_that_training_changed_are_stored(bases: Path, tmp_path: Path) -> None:
    """Running statistics of a batch norm change with every batch of an encoder that is not frozen, whatever trains."""
    fields = {key: value for key, value in CASES["hubert-batch-norm"]["config"].items() if key != "model_type"}
    HubertModel(HubertConfig(**fields)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8000).save_pretrained(tmp_path / "hubert")
    recipe = write_recipe(tmp_path, bases)
    settings = [f"model.encoder={{type: transformers, checkpoint: {tmp_path / 'hubert'}}}"]
    small = train(recipe, settings, out=tmp_path / "small") / "final"
    whole = train(recipe, [*settings, "save=all"], out=tmp_path / "whole") / "final"
    running = [name for name in load_file(small / "model.safetensors") if name.endswith("running_mean")]
    assert running
    assert torch.equal(logits(small), logits(whole))


def test_a_model_without_bases_cannot_leave_anything_out(bases: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, bases)
    sizes = "hidden_size: 32, num_attention_heads: 4, intermediate_size: 48, num_hidden_layers: 2, tokenizer: {vocab_size: 300}"
    fresh = [f"model.llm={{model_type: llama, {sizes}}}"]
    with pytest.raises(PalError, match="save: trained leaves out what comes from a base"):
        train(recipe, [*fresh, "model.encoder={type: conv}"], out=tmp_path / "run")
    folder = train(recipe, fresh, out=tmp_path / "run") / "final"
    assert json.loads((folder / "config.json").read_text())["bases"]["llm"] is None
    assert any(name.startswith("language_model.") for name in load_file(folder / "model.safetensors"))
    assert logits(folder).isfinite().all()
