"""Training an adapter on an LLM in 4 bits, from the recipe to the answer: what trains, what resumes, what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.model.tokenizer import train_tokenizer
from pal_audio.training.groups import GROUPS, parameter_groups
from pal_audio.training.preflight import plan_run
from pal_audio.training.recipe import load_recipe
from pal_audio.training.run import train
from tests.tiny import RATE_HZ, batch, llm_config, message, noise, tiny_model, tokenizer_texts
from tests.training.broken_off import broken_off

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes, an optional extra, is not installed"
)
ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
precision: bfloat16
model:
  preset: pal
  encoder: {type: conv, num_mels: 16, channels: [4, 8], time_strides: [4, 2], hidden_size: 16, num_layers: 1, num_heads: 2}
  summary: {type: pool, num_tokens: 2}
  llm: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
        num_key_value_heads: 2, max_position_embeddings: 512, tokenizer: {vocab_size: 300}}
adapter: {type: qlora, r: 2, dropout: 0.2, target: all_linear}
data: {num_train: 12, num_test: 2, seconds: 2.0}
stages:
  - {name: first, train: {connector: 1e-3, projector: 1e-3}, steps: 3, batch_size: 4, save_every: 2}
  - {name: second, train: {connector: 1e-3, llm.adapter: 1e-2}, steps: 5, batch_size: 4, save_every: 2, checkpointing: true}
"""
SIZES = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@needs_bitsandbytes
@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
@pytest.mark.parametrize(
    "parts",
    [{"llm.adapter"}, {"connector", "llm.adapter"}, {"projector"}, {"llm.norm", "encoder"}],
    ids=lambda parts: "+".join(sorted(parts)),
)
def test_gradients_reach_exactly_the_stages_parts(arm: str, parts: set[str]) -> None:
    """Invariant 7 in 4 bits: backward through a real batch."""
    if arm == "plits" and parts == {"projector"}:
        return  # it has none
    model, processor = tiny_model("llama", arm, llm=SIZES, adapter={"type": "qlora", "r": 2, "target": "all_linear"})
    parameter_groups(model, dict.fromkeys(parts, 1e-3), 0.1)
    model.train()
    conversation = [*message(noise(0.6)), {"role": "assistant", "content": "a bell"}]
    model(**batch(processor, [conversation], return_labels=True), use_cache=False).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in model.named_parameters() if any(GROUPS[part](name) for part in parts)}


@needs_bitsandbytes
def test_a_run_resumes_to_the_same_bits_answers_and_exports(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(recipe, out=tmp_path / "whole")
    first = load_file(whole / "checkpoints-0" / "00000003" / "model.safetensors")
    final = load_file(whole / "final" / "model.safetensors")
    changed = {name for name, tensor in final.items() if not tensor.equal(first[name])}
    assert changed == {name for name in final if GROUPS["llm.adapter"](name) or GROUPS["connector"](name)}
    broken = broken_off(recipe, tmp_path / "broken", monkeypatch, at=(("first", 3), ("second", 4)))
    again = load_file(broken / "final" / "model.safetensors")
    assert again.keys() == final.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in final.items())

    capsys.readouterr()
    soundfile.write(tmp_path / "clip.wav", noise(0.5), RATE_HZ)
    asked = ["ask", str(tmp_path / "clip.wav"), "what is it?", "--device", "cpu", "--max-new-tokens", "4", "--json", "--model"]
    assert cli.main([*asked, str(whole)]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert cli.main(["export", str(whole), str(tmp_path / "merged"), "--merge"]) == 0
    capsys.readouterr()
    assert cli.main([*asked, str(tmp_path / "merged")]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == answer
    sizes = {folder: (folder / "model.safetensors").stat().st_size for folder in (whole / "final", tmp_path / "merged")}
    assert sizes[whole / "final"] < sizes[tmp_path / "merged"]
    assert load(tmp_path / "merged")[0].config.adapter is None
    assert cli.main(["info", str(whole), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["adapter"]["type"] == "qlora"
    assert described["parameters"]["llm"] > 2 * (4 * 64 * 64 + 3 * 64 * 128) - 1


@needs_bitsandbytes
def test_a_folder_of_trained_parts_keeps_the_bits_and_names_the_base(recipe: Path, tmp_path: Path) -> None:
    """Their last bits depend on the machine that quantised them, so they are stored; embeddings and norms are the base's."""
    tokenizer = train_tokenizer(tokenizer_texts(), 300)
    base = AutoModelForCausalLM.from_config(llm_config("llama", len(tokenizer), num_hidden_layers=2, **SIZES))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = [f"model.llm={tmp_path / 'base'}", "model.encoder.hidden_size=8"]
    folders = {save: train(recipe, [*settings, f"save={save}"], out=tmp_path / save) / "final" for save in ("trained", "all")}
    stored = load_file(folders["trained"] / "model.safetensors")
    assert (
        sum(name.startswith("language_model.") and not tensor.is_floating_point() for name, tensor in stored.items()) == 3 * 2 * 7
    )
    assert not [name for name in stored if "embed_tokens" in name or "lm_head" in name or "layernorm" in name]
    ours, whole = (load(folder)[0].state_dict() for folder in folders.values())
    assert ours.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in ours.items())


@needs_bitsandbytes
def test_the_plan_counts_weights_and_the_bytes_that_hold_them(recipe: Path, tmp_path: Path) -> None:
    plans = [plan_run(recipe, [f"adapter.type={kind}"], out=tmp_path / "run") for kind in ("qlora", "lora")]
    assert plans[0].parameters == plans[1].parameters
    sizes = [size for _ in range(2) for size in (64 * 64, 64 * 32, 64 * 32, 64 * 64, 64 * 128, 64 * 128, 128 * 64)]
    for ours, plain in zip(plans[0].stages, plans[1].stages, strict=True):
        assert (ours.num_parameters, ours.num_trained) == (plain.num_parameters, plain.num_trained)
        assert plain.memory.weights - ours.memory.weights == sum(4 * size - size // 2 - size // 64 - 4 * 258 for size in sizes)


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "precision"), [("ddp", "float32"), ("fsdp", "float32"), ("fsdp", "bfloat16")])
def test_two_processes_compute_what_one_does(recipe: Path, parallel: str, precision: str, tmp_path: Path) -> None:
    """By gloo: 4-bit weights are shared out or copied as they are, and losses and weights are those of one process."""
    settings = [f"precision={precision}", f"parallel={parallel}"]
    settings += ["adapter.dropout=0.0", "model.encoder.dropout=0.0", "model.encoder.spec_augment=false"]
    one = train(recipe, settings, out=tmp_path / "one")
    code = (
        "import sys, torch.distributed as dist\nfrom datetime import timedelta\nfrom pathlib import Path\n"
        "from pal_audio.training.run import train\nfrom pal_audio.training.processes import leave\n"
        "recipe, out, meeting, rank, *settings = sys.argv[1:]\n"
        "dist.init_process_group('gloo', init_method=f'file://{meeting}', rank=int(rank), world_size=2,"
        " timeout=timedelta(seconds=60))\n"
        "train(recipe, settings, out=Path(out))\nleave()\n"
    )
    started = []
    for rank in range(2):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment = {**os.environ, **ranks, "GLOO_SOCKET_IFNAME": "lo"}
        places = [str(path) for path in (recipe, tmp_path / "two", tmp_path / "meeting")]
        command = [sys.executable, "-c", code, *places, str(rank), *settings]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in started:
        try:
            _, errors = process.communicate(timeout=240)
        finally:
            process.kill()
        assert process.returncode == 0, errors
    runs = (one, tmp_path / "two")
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in runs)
    for name, tensor in ours.items():
        if tensor.is_floating_point():
            if precision == "float32":
                torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-4, msg=name)
        else:
            assert torch.equal(theirs[name], tensor), name
    losses = [[json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4 if precision == "float32" else 1e-2)


@pytest.mark.parametrize("part", ["llm", "llm.attention", "llm.ffn"])
def test_a_stage_that_trains_the_base_is_refused(recipe: Path, part: str) -> None:
    words = rf"stage 'second': train: '{part}' cannot train under `adapter: {{type: qlora}}`.*train 'llm.adapter'"
    with pytest.raises(PalError, match=words) as caught:
        load_recipe(recipe, [f"stages.1.train={{{part}: 1e-3, llm.adapter: 1e-3}}"])
    assert "\n" not in str(caught.value)


@needs_bitsandbytes
def test_in_python_too() -> None:
    model, _ = tiny_model("llama", "lal", llm=SIZES, adapter={"type": "qlora", "target": "all_linear"})
    with pytest.raises(PalError, match=r"'llm.ffn' cannot train under `adapter: \{type: qlora\}`"):
        parameter_groups(model, {"llm.ffn": 1e-3}, 0.0)


def test_a_run_without_bitsandbytes_begins_nothing(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest))
    with pytest.raises(PalError, match=r"pip install 'pal-audio\[qlora\]'"):
        train(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
