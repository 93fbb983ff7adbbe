"""The plan: what it says is what happens, and what cannot fit is refused before it costs anything."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import soundfile
import torch

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.model import load
from pal_audio.training import fit, preflight
from pal_audio.training import run as run_module
from pal_audio.training.groups import GROUPS, parameter_groups
from pal_audio.training.memory import Device, Row, activation_bytes, held_memory, sharded_memory, size_text
from pal_audio.training.preflight import plan_run
from pal_audio.training.run import train
from tests.tiny import RATE_HZ, batch, message, noise, tiny_model
from tests.training.shrink import write_clips


def test_the_plan_counts_what_the_run_then_has(recipe: Path, tmp_path: Path) -> None:
    plan = plan_run(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model, _ = load(train(recipe, out=tmp_path / "run") / "final")
    first, second = plan.stages
    vocabulary = model.config.text_config.vocab_size
    assert plan.parameters["llm"] == sum(p.numel() for p in model.language_model.parameters())
    assert vocabulary <= 300
    for stage in (first, second):
        assert list(stage.trained) == list(stage.learning_rates)
        for part, count in stage.trained.items():
            assert count == sum(p.numel() for name, p in model.named_parameters() if GROUPS[part](name))
        assert stage.num_trained == sum(stage.trained.values())
        assert stage.num_parameters == sum(p.numel() for p in model.parameters())
    assert (first.num_steps, first.epochs, first.batch) == (6, 1.0, "4")
    assert (second.num_steps, list(second.trained)) == (4, ["encoder"])
    assert second.memory.held < first.memory.held


def test_the_table_the_example_and_the_machine_are_shown_before_the_first_step(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_report", stop)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "run")
    shown = capsys.readouterr().err
    for words in ("plan", "of all", "encoder", "first example", "<|audio|><|audio_slot|> x 2", "supervised", "'<|end|>'", "disk"):
        assert words in shown, words
    assert Device.here().name[:20] in shown


def test_pal_train_plan_prints_and_stops(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(recipe), "--plan", "--out", str(tmp_path / "run")]
    assert cli.main(command) == 0
    assert "first example" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in printed["stages"]] == ["first", "second"]
    assert "".join(printed["example"]["supervised"]).endswith("<|end|>")
    assert printed["stages"][0]["memory"]["total"] > printed["stages"][0]["memory"]["weights"] > 0
    assert not (tmp_path / "run").exists()
    assert cli.main(["train", str(recipe), "--json"]) == 2
    assert "--plan" in capsys.readouterr().err


def test_a_plan_for_many_scenes_composes_few(recipe: Path) -> None:
    stages = ["stages.0.steps=null", "stages.0.epochs=2", "stages.1.steps=10"]
    plan = plan_run(recipe, ["data.num_train=1000", *stages])
    assert plan.num_train == 1000
    assert [stage.num_steps for stage in plan.stages] == [500, 10]
    assert plan.stages[1].epochs == pytest.approx(10 * 4 / 1000)


def test_an_adapters_memory_is_its_own(recipe: Path) -> None:
    whole = plan_run(recipe, ["stages.0.train={llm: 1e-3}"]).stages[0]
    adapter = ["adapter.type=lora", "stages.0.train={llm.adapter: 1e-3}"]
    small = plan_run(recipe, adapter).stages[0]
    assert small.trained.keys() == {"llm.adapter"}
    assert 0 < small.memory.optimizer < whole.memory.optimizer / 4
    assert small.memory.weights > whole.memory.weights


def test_what_is_counted_is_what_a_step_leaves() -> None:
    model, processor = tiny_model("llama", "pal")
    parts = {"connector": 1e-3, "llm.attention": 1e-3}
    optimizer = torch.optim.AdamW(parameter_groups(model, parts, 0.0))
    conversation = [*message(noise(0.6)), {"role": "assistant", "content": "a bell"}]
    model(**batch(processor, [conversation], return_labels=True), use_cache=False).loss.backward()
    optimizer.step()
    memory = held_memory(model)
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert memory.optimizer == sum(value.nbytes for value in moments)
    assert memory.weights == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("arm", ["plits", "lal", "pal", "flamingo"])
@pytest.mark.parametrize("parts", [("llm", "connector", "encoder"), ("connector",)], ids=str)
def test_activations_are_estimated_within_a_factor_of_two(arm: str, parts: tuple[str, ...]) -> None:
    """Against the bytes that autograd keeps for the backward pass."""
    model, processor = tiny_model("llama", arm, llm={"hidden_size": 64, "intermediate_size": 128})
    parameter_groups(model, dict.fromkeys(parts, 1e-3), 0.0)
    model.train()
    conversation = [*message(noise(3.0)), {"role": "assistant", "content": "a bell"}]
    inputs = batch(processor, [conversation] * 4, return_labels=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, use_cache=False)
    real = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    audio, samples = model.config.audio, {"audio": 48_000}
    lengths = [(stream.integration.type, audio.stream_length(stream, samples)) for stream in audio.streams]
    num_slots = sum(length for kind, length in lengths if kind == "plits")
    keys = tuple(length for kind, length in lengths if kind != "plits")
    frames = {name: config.output_lengths(48_000) for name, config in audio.encoders.items()}
    num_text = inputs["input_ids"].shape[1] - num_slots
    row = Row(num_text, num_text + num_slots, num_slots, keys, frames)
    assert 0.5 < activation_bytes(model, model, row, 4, "float32") / real < 2


def test_shards_take_less_memory_and_what_is_whole_while_a_step_runs_is_counted() -> None:
    model, _ = tiny_model("llama", "pal")
    parameter_groups(model, {"llm": 1e-3}, 0.0)
    whole = held_memory(model)
    assert sharded_memory(model, whole, 1, "float32") == whole
    layers = sum(tensor.nbytes for layer in model.language_model.model.layers for tensor in layer.parameters())
    two = sharded_memory(model, whole, 2, "float32")
    assert (two.gradients, two.optimizer) == (-(-whole.gradients // 2), -(-whole.optimizer // 2))
    assert two.weights == -(-whole.weights // 2) + whole.weights - layers
    assert sharded_memory(model, whole, 2, "bfloat16").weights == -(-whole.weights // 2) + (whole.weights - layers) // 2


# ---- refusals


def test_a_model_beyond_the_devices_memory_is_refused_before_weights_or_data_are_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("cuda", "tiny card", 240_000)
    monkeypatch.setattr(Device, "here", classmethod(lambda cls: small))
    for call in (train, plan_run):
        with pytest.raises(
            PalError, match=r"stage 'first' needs .* KiB without any batch .* tiny card has 234.4 KiB; train an ada"
        ) as e:
            call(recipe, out=tmp_path / "run")  # type: ignore[operator]
        assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()
    few = ["stages.0.train={connector: 1e-3}"]
    assert plan_run(recipe, few).stages[0].memory.held < small.memory, "fewer parts are what the line proposes"
    small = Device("cuda", "tiny card", 2_000)
    with pytest.raises(PalError, match="the weights alone are too large"):
        plan_run(recipe)


class Usage(NamedTuple):
    free: int


def test_a_disk_too_small_for_the_checkpoints_is_refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = plan_run(recipe).disk_bytes
    run = train(recipe, out=tmp_path / "run")
    used = sum(file.stat().st_size for file in run.glob("checkpoints-*/*/*"))
    final = (run / "final" / "model.safetensors").stat().st_size
    assert 0.9 * (used + final) < need < 2 * (used + final)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=need - 1))
    with pytest.raises(PalError, match=r"other: checkpoints take up to .* are free; make room"):
        train(recipe, out=tmp_path / "other")
    with pytest.raises(PalError, match="are free"):
        plan_run(recipe, out=tmp_path / "nothing" / "here")
    (run / "finished.json").unlink()
    train(recipe, out=run, resume=True)  # its own checkpoints count as room


@pytest.mark.parametrize("positions", ["span", "zero"])
def test_an_example_beyond_the_context_is_named(recipe: Path, tmp_path: Path, positions: str) -> None:
    manifest = write_clips(tmp_path, "a", 3)
    lines = manifest.read_text().splitlines()
    settings = [
        f"data={json.dumps({'type': 'manifests', 'train': [str(manifest)], 'test': [str(manifest)]})}",
        f"model.positions={positions}",
        "model.llm.max_position_embeddings=200",
    ]
    plan_run(recipe, settings)
    lines[1] = lines[1].replace("a dog", "a dog " * 150)
    manifest.write_text("\n".join(lines) + "\n")
    with pytest.raises(PalError, match=r"example 'a-1' takes \d+ positions .* trained on 200") as caught:
        plan_run(recipe, settings)
    assert ("`positions: zero`" in str(caught.value)) == (positions == "span")
    with pytest.raises(PalError, match="example 'a-1' takes"):
        train(recipe, settings, out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints-0").exists()


def test_what_is_asked_at_the_end_is_looked_at_before_training(recipe: Path, tmp_path: Path) -> None:
    good, long, bad = (write_clips(tmp_path / name, name, 3) for name in ("a", "b", "c"))
    long.write_text(long.read_text().replace("a dog", "a dog " * 150))
    next(bad.parent.glob("*.wav")).write_bytes(b"nothing")
    for test, words in ((long, r"held-out example 'b-\d' takes \d+ positions"), (bad, "decodes as audio")):
        places = {"type": "manifests", "train": [str(good)], "test": [str(test)]}
        settings = [f"data={json.dumps(places)}", "model.llm.max_position_embeddings=200"]
        with pytest.raises(PalError, match=words):
            train(recipe, settings, out=tmp_path / "run", overwrite=True)
        assert not list((tmp_path / "run").glob("checkpoints-0/*"))


def test_long_sound_counts_where_it_takes_positions(recipe: Path, tmp_path: Path) -> None:
    """30 s give 188 audio tokens; the texts alone are far below the limit."""
    manifest = write_clips(tmp_path, "a", 3)
    soundfile.write(tmp_path / "a-1.wav", noise(30.0), RATE_HZ)
    settings = [
        f"data={json.dumps({'type': 'manifests', 'train': [str(manifest)], 'test': [str(manifest)]})}",
        "model.llm.max_position_embeddings=150",
    ]
    with pytest.raises(PalError, match=r"example 'a-1' takes .* 188 of sound\) .* trained on 150; .*`positions: zero`"):
        plan_run(recipe, settings)
    plan_run(recipe, [*settings, "model.positions=zero"])


def test_positions_of_clips_are_worked_out_once_for_each_length(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []
    real = fit._positions_of
    monkeypatch.setattr(fit, "_positions_of", lambda model, *clips: (asked.append(clips), real(model, *clips))[1])
    manifest = write_clips(tmp_path, "a", 30)
    plan_run(recipe, [f"data={json.dumps({'type': 'manifests', 'train': [str(manifest)], 'test': [str(manifest)]})}"])
    assert 0 < len(asked) <= 4, "twice thirty clips of about one length, counted in whole seconds"
    assert all(seconds == int(seconds) for seconds, _ in asked)


def test_sizes_are_written_as_people_do() -> None:
    assert [size_text(number) for number in (5, 2048, 3 << 20, 5000 << 30)] == ["5 B", "2.0 KiB", "3.0 MiB", "5,000.0 GiB"]


def test_the_modules_under_test_are_the_ones_that_run() -> None:
    """A stand-in patched into one module must be seen by both ways in."""
    assert preflight.check_memory is fit.check_memory is run_module.check_memory
