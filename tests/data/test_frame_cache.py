"""Frames from the cache are the live ones; what is foreign, stale, missing, cut or changed is refused in one line."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import save_file

from pal_audio import cli, encoders
from pal_audio.audio import load_audio
from pal_audio.data import encode as encode_module
from pal_audio.data import file_hashes
from pal_audio.data.collation import Collator
from pal_audio.data.encode import encode, verify
from pal_audio.data.encoder_identity import EncoderIdentity
from pal_audio.data.file_hashes import hash_file
from pal_audio.data.frame_cache import DTYPES, FrameCache, read_entries, shards
from pal_audio.data.manifest import AudioPart, Example, read_manifest
from pal_audio.data.workers import in_workers
from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError
from pal_audio.model import ModelSpec, PalForConditionalGeneration, PalProcessor, build_model
from pal_audio.model.export import save_folder
from tests.tiny import RATE_HZ, TINY_ENCODER, hear_as_on_a_gpu, noise, tiny_model

FROZEN = TINY_ENCODER | {"frozen": True}
WHISPER = {
    "type": "whisper",
    "frozen": True,
    "encoder_layers": "per_llm_layer",
    "config": {"d_model": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "num_mel_bins": 80,
               "max_source_positions": 50},
}  # fmt: skip
SECONDS = (0.3, 1.4, 2.3, 0.9)


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    """A manifest of four clips, one of them a stretch, one example with two, and one example with the first clip again."""
    for number, seconds in enumerate(SECONDS):
        soundfile.write(tmp_path / f"{number}.wav", noise(seconds, number), RATE_HZ, "FLOAT")
    clips: list[list[dict[str, Any]]] = [
        [{"path": "0.wav"}],
        [{"path": "1.wav"}, {"path": "2.wav", "start_s": 0.5, "end_s": 1.75}],
        [{"path": "3.wav"}, {"path": "0.wav"}],
    ]
    lines = []
    for number, parts in enumerate(clips):
        content = [{"type": "audio", **part} for part in parts] + [{"type": "text", "text": "what sound is this?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a bell"}]
        lines.append(json.dumps({"id": str(number), "messages": messages}) + "\n")
    (tmp_path / "m.jsonl").write_text("".join(lines))
    return read_manifest(tmp_path / "m.jsonl")


def clips_of(examples: list[Example]) -> list[AudioPart]:
    return [part for example in examples for part in example.audio]


def logits_and_gradients(
    model: PalForConditionalGeneration, processor: PalProcessor, examples: list[Example], frames: FrameCache | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.train()
    model.zero_grad()
    inputs = Collator(processor, frames=frames).training_batch(examples)
    inputs = {key: value.to("cpu") for key, value in inputs.items()}  # as the loop does
    output = model(**inputs)
    output.loss.backward()
    gradients = {name: item.grad for name, item in model.named_parameters() if item.grad is not None}
    return output.logits.detach(), gradients


@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
def test_cached_is_live(arm: str, examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny_model("llama", arm, encoder=FROZEN)
    assert encode(clips_of(examples), model.encoders, tmp_path / "frames") == 4
    cache = FrameCache(tmp_path / "frames", model.encoders)
    live_logits, live = logits_and_gradients(model, processor, examples, None)
    logits, gradients = logits_and_gradients(model, processor, examples, cache)
    torch.testing.assert_close(logits, live_logits, rtol=0, atol=1e-6)
    assert gradients.keys() == live.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, live[name], rtol=0, atol=1e-6)


def test_cached_is_live_with_a_layer_of_the_encoder_for_each_layer(examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny_model("llama", "lal", encoder=WHISPER)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    cache = FrameCache(tmp_path / "frames", model.encoders)
    assert [len(frames.layers) for frames in cache.read(examples[0].audio[0]).values()] == [2]
    live, _ = logits_and_gradients(model, processor, examples, None)
    cached, _ = logits_and_gradients(model, processor, examples, cache)
    torch.testing.assert_close(cached, live, rtol=0, atol=1e-6)


def test_two_encoders_share_a_folder(examples: list[Example], tmp_path: Path) -> None:
    ears = {"one": FROZEN, "two": FROZEN | {"hidden_size": 8, "sampling_rate_hz": 8000}}
    streams = [
        {"encoder": "one", "connector": {"type": "mlp"}, "integration": {"type": "lal"}},
        {"encoder": "two", "connector": {"type": "pool", "num_tokens": 2}, "integration": {"type": "plits"}},
    ]
    llm = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    spec = ModelSpec(llm=llm | {"tokenizer": {"vocab_size": 300}}, encoders=ears, streams=streams)
    model, processor = build_model(spec, ["what sound is this?", "a bell"])
    assert encode(clips_of(examples), {"one": model.encoders["one"]}, tmp_path / "frames") == 4
    with pytest.raises(PalError, match="another configuration than 'two'"):
        FrameCache(tmp_path / "frames", model.encoders)
    assert encode(clips_of(examples), model.encoders, tmp_path / "frames") == 4
    frames = FrameCache(tmp_path / "frames", model.encoders)
    live, cached = (model(**Collator(processor, frames=item).training_batch(examples)).logits for item in (None, frames))
    torch.testing.assert_close(cached, live, rtol=0, atol=1e-6)


@pytest.mark.parametrize("samples", [False, True])
def test_a_clip_is_read_once_for_all_encoders_that_lack_it(
    samples: bool, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [encoders.parse(FROZEN | {"hidden_size": width, "num_heads": 2}) for width in (16, 8, 24)]
    three: dict[str, Any] = {str(config.hidden_size): encoders.build(config) for config in configs}
    clips = clips_of(examples)
    if samples:
        hear_as_on_a_gpu(monkeypatch)
    read: list[str] = []

    def counted(path: str, *arguments: Any, **options: Any) -> Any:
        read.append(path)
        return load_audio(path, *arguments, **options)

    monkeypatch.setattr(encode_module, "load_audio", counted)
    encode(clips[:1], {"16": three["16"]}, tmp_path / "frames")
    read.clear()
    told: list[tuple[int, int]] = []
    out = tmp_path / "frames"
    two = {name: three[name] for name in ("16", "8")}
    assert encode(clips, two, out, progress=lambda done, total: told.append((done, total))) == 3 + 4
    assert sorted(read) == sorted({clip.path for clip in clips})
    assert told[-1] == (7, 7)
    assert encode(clips, three, out) == 4, "those of a third encoder alone"
    assert encode(clips, three, out) == 0
    num, largest = verify(clips, three, out, 10)
    assert num == 4
    assert largest < 2e-5
    apart = {name: tmp_path / name for name in three}
    for name, folder in apart.items():
        encode(clips, {name: three[name]}, folder)
        for clip in clips:
            (alone,) = FrameCache(folder, {name: three[name]}).read(clip)[name].layers
            torch.testing.assert_close(FrameCache(out, three).read(clip)[name].layers[0], alone, rtol=0, atol=2e-5)


def test_encoders_of_other_windows_and_rates_get_their_own_samples(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of one number of samples at two rates, and of two lengths at one; the cache is that of the front ends' features."""
    fields = [{"window_s": 1.0}, {"window_s": 2.0, "sampling_rate_hz": 8000}, {"window_s": 0.5}]
    ears: dict[str, Any] = {str(number): encoders.build(encoders.parse(FROZEN | some)) for number, some in enumerate(fields)}
    assert ears["0"].config.window_samples == ears["1"].config.window_samples
    with monkeypatch.context() as as_on_a_gpu:
        hear_as_on_a_gpu(as_on_a_gpu)
        assert encode(clips_of(examples), ears, tmp_path / "frames") == 3 * 4
    assert all(ear._log_mel is not None for ear in ears.values())
    cache = FrameCache(tmp_path / "frames", ears)
    for clip in clips_of(examples):
        stored = cache.read(clip)
        for name, ear in ears.items():
            wav_S = load_audio(clip.path, ear.config.sampling_rate_hz, start_s=clip.start_s, end_s=clip.end_s)
            live = ear(ear.config.front_end()(wav_S), torch.tensor([len(wav_S)]))
            torch.testing.assert_close(stored[name].layers[0], live.layers[0], rtol=0, atol=2e-5)


def test_answers_and_audio_tokens_are_those_of_live_sound(examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny_model("llama", "pal", encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    collators = [Collator(processor), Collator(processor, frames=FrameCache(tmp_path / "frames", model.encoders))]
    live, cached = (
        model.generate(**collator.prompt_batch(examples), max_new_tokens=4, do_sample=False) for collator in collators
    )
    assert torch.equal(live, cached)
    muted = [collator.prompt_batch(examples, muted=True)["input_features"] for collator in collators]
    assert torch.equal(*muted)
    tokens = [
        model.get_audio_features(*(collator.prompt_batch(examples)[key] for key in ("input_features", "audio_num_samples")))
        for collator in collators
    ]
    for (ours, lengths), (theirs, expected) in zip(*tokens, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert torch.equal(lengths, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02), ("float16", 0.002)])
def test_verify_measures_the_largest_difference(dtype: Any, tolerance: float, examples: list[Example], tmp_path: Path) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "frames", dtype)
    frames = FrameCache(tmp_path / "frames", model.encoders).read(examples[0].audio[0])
    assert next(iter(frames.values())).layers[0].dtype == DTYPES[dtype]
    num, largest = verify(clips_of(examples), model.encoders, tmp_path / "frames", 10)
    assert num == 4
    assert largest <= tolerance
    assert (largest > 1e-6) == (dtype != "float32")
    other = "float16" if dtype == "float32" else "float32"
    with pytest.raises(PalError, match=f"holds {dtype} frames; ask for --dtype {dtype}"):
        encode(clips_of(examples), model.encoders, tmp_path / "frames", other)  # type: ignore[arg-type]


def test_the_identity_outlives_saving_and_follows_every_weight(tmp_path: Path) -> None:
    for encoder in (FROZEN, WHISPER):
        model, processor = tiny_model("llama", "lal", encoder=encoder)
        save_folder(model, processor, tmp_path / "model")
        loaded = PalForConditionalGeneration.from_pretrained(tmp_path / "model")
        (ours,), (theirs,) = model.encoders.values(), loaded.encoders.values()
        identity = EncoderIdentity.of(ours)
        assert EncoderIdentity.of(theirs) == identity
        largest = max(theirs.parameters(), key=torch.Tensor.numel)
        largest.data.view(-1)[largest.numel() // 2 + 1] += 1e-6
        assert EncoderIdentity.of(theirs).weights != identity.weights


# ---- what is refused


def test_another_encoder_is_refused(examples: list[Example], tmp_path: Path) -> None:
    encode(clips_of(examples), tiny_model(encoder=FROZEN)[0].encoders, tmp_path / "frames")
    with pytest.raises(PalError, match="another weights than"):
        FrameCache(tmp_path / "frames", tiny_model(encoder=FROZEN, seed=1)[0].encoders)
    with pytest.raises(PalError, match="another configuration than"):
        FrameCache(tmp_path / "frames", tiny_model(encoder=FROZEN | {"window_s": 0.5})[0].encoders)


@pytest.mark.parametrize(
    ("change", "words"), [({"frozen": False}, "is not frozen, so"), ({"spec_augment": True}, "spec_augment changes what")]
)
def test_an_encoder_that_changes_in_training_is_refused(
    change: dict[str, Any], words: str, examples: list[Example], tmp_path: Path
) -> None:
    encode(clips_of(examples), tiny_model(encoder=FROZEN)[0].encoders, tmp_path / "frames")
    changing = tiny_model(encoder=FROZEN | change)[0].encoders
    for act in (lambda: encode([], changing, tmp_path / "other"), lambda: FrameCache(tmp_path / "frames", changing)):
        with pytest.raises(PalError, match=words):
            act()
    assert not (tmp_path / "other").exists()


def test_the_model_refuses_frames_of_another_shape_or_for_an_encoder_that_learns(examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny_model(encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    inputs = Collator(processor, frames=FrameCache(tmp_path / "frames", model.encoders)).training_batch(examples)
    with pytest.raises(PalError, match="have shapes"):
        tiny_model(encoder=FROZEN | {"hidden_size": 10})[0](**inputs)
    with pytest.raises(PalError, match="is not frozen"):
        tiny_model()[0](**inputs)
    live = Collator(processor).clip(examples[0].audio[0])
    ready = Collator(processor, frames=FrameCache(tmp_path / "frames", model.encoders)).clip(examples[0].audio[0])
    with pytest.raises(PalError, match="hold frames and others features"):
        processor.collate_clips([live, ready])


def test_a_changed_or_new_clip_is_missed(examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny_model(encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    soundfile.write(tmp_path / "1.wav", noise(1.4, 9), RATE_HZ, "FLOAT")
    collator = Collator(processor, frames=FrameCache(tmp_path / "frames", model.encoders))
    assert collator.seconds(examples[0]) == pytest.approx(SECONDS[0], abs=1 / RATE_HZ)
    with pytest.raises(PalError, match=r"no frames of .*1\.wav from 0 s to its end"):
        collator.seconds(examples[1])
    stretch = AudioPart(path=str(tmp_path / "0.wav"), start_s=0.1)
    with pytest.raises(PalError, match=r"no frames of .*0\.wav from 0.1 s"):
        collator.clip(stretch)
    assert encode([*clips_of(examples), stretch], model.encoders, tmp_path / "frames") == 2  # only what is new


def read_all(folder: Path, model: PalForConditionalGeneration, clips: list[AudioPart]) -> None:
    cache = FrameCache(folder, model.encoders)
    for part in clips:
        cache.read(part)


def damage_data(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)


def damage_header(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[20] ^= 4
    shard.write_bytes(content)


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-10])


def replace(shard: Path) -> None:
    save_file({"a": torch.zeros(1)}, shard)


@pytest.mark.parametrize("damage", [damage_data, damage_header, cut, replace])
def test_a_damaged_shard_is_a_clear_error(damage: Any, examples: list[Example], tmp_path: Path) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    (shard,) = shards(tmp_path / "frames")
    damage(shard)
    with pytest.raises(PalError, match=r"000000\.safetensors: this shard is damaged; delete it") as caught:
        read_all(tmp_path / "frames", model, clips_of(examples))
    assert "\n" not in str(caught.value)
    shard.unlink()
    assert encode(clips_of(examples), model.encoders, tmp_path / "frames") == 4


def test_folders_that_are_no_caches(examples: list[Example], tmp_path: Path) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    with pytest.raises(PalError, match="no frame cache here"):
        FrameCache(tmp_path / "none", model.encoders)
    with pytest.raises(PalError, match="holds something that is no frame cache"):
        encode([], model.encoders, tmp_path)
    (tmp_path / "c").mkdir()
    for content, words in (("{", "not JSON"), ('{"dtype": "int3"}', "dtype"), ('{"dtype": "float32", "format": 9}', "format 9")):
        (tmp_path / "c" / "cache.json").write_text(content)
        with pytest.raises(PalError, match=words):
            FrameCache(tmp_path / "c", model.encoders)


# ---- a kill


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pal_audio.data import encode as module
from pal_audio.data.manifest import read_manifest
from pal_audio.data import folder
from tests.tiny import tiny_model
from tests.data.test_frame_cache import FROZEN
module.BATCH_CLIPS = 1
if sys.argv[3] == "rename":
    count, replace = [], os.replace
    def killed(source, target):
        count.append(target)
        if len(count) == 5:  # cache.json, files.json, two shards, and in the middle of the third
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
    os.replace = killed
def progress(done, total):
    if sys.argv[3] == "between" and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
parts = [part for example in read_manifest(sys.argv[1]) for part in example.audio]
module.encode(parts, tiny_model(encoder=FROZEN)[0].encoders, Path(sys.argv[2]), progress=progress, shard_bytes=1)
"""


@pytest.mark.parametrize("moment", ["rename", "between"])
def test_a_kill_in_the_middle_resumes(moment: str, examples: list[Example], tmp_path: Path) -> None:
    """kill -9 while a second shard may be on its way, and with a third written but not yet renamed: whole ones are kept."""
    out = tmp_path / "frames"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "m.jsonl"), str(out), moment]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert moment == "between" or list(out.glob(".*.tmp"))
    kept = {shard: (shard.read_bytes(), shard.stat().st_mtime_ns) for shard in shards(out)}
    assert len(kept) == 2 or (moment == "between" and len(kept) == 1)
    model, _ = tiny_model(encoder=FROZEN)
    assert encode(clips_of(examples), model.encoders, out) == 4 - len(kept)
    assert {shard: (shard.read_bytes(), shard.stat().st_mtime_ns) for shard in kept} == kept
    assert not list(out.glob(".*.tmp"))
    whole = tmp_path / "whole"
    encode(clips_of(examples), model.encoders, whole)
    ours, theirs = ({key for shard in shards(folder) for key in read_entries(shard)} for folder in (out, whole))
    assert ours == theirs
    assert verify(clips_of(examples), model.encoders, out, 9)[1] <= 1e-6
    assert encode(clips_of(examples), model.encoders, out) == 0


def test_one_writer_at_a_time(examples: list[Example], tmp_path: Path) -> None:
    model, _ = tiny_model(encoder=FROZEN)

    def second(done: int, total: int) -> None:
        with pytest.raises(PalError, match="being written by another process"):
            encode(clips_of(examples), model.encoders, tmp_path / "frames")

    encode(clips_of(examples), model.encoders, tmp_path / "frames", progress=second)


def test_a_full_disk_keeps_the_shards_before(examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:  # cache.json, files.json, the first shard and its folder, the second shard
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PalError, match=r"a shard cannot be written \(No space left on device"):
        encode(clips_of(examples), model.encoders, tmp_path / "frames", shard_bytes=1)
    assert len(shards(tmp_path / "frames")) == 1
    assert encode(clips_of(examples), model.encoders, tmp_path / "frames") == 3


def test_a_shard_that_cannot_be_written_ends_the_run_soon(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard fails while the second, which never gets full, is filled."""
    model, _ = tiny_model(encoder=FROZEN)
    monkeypatch.setattr(encode_module, "BATCH_CLIPS", 1)
    monkeypatch.setattr(encode_module, "SHARD_ENTRIES", 2)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encode_module, "write_bytes", full)
    done: list[int] = []

    def progress(encoded: int, total: int) -> None:
        done.append(encoded)
        time.sleep(0.5)  # the thread has failed by then

    with pytest.raises(PalError, match=r"a shard cannot be written \(No space left on device"):
        encode(clips_of(examples), model.encoders, tmp_path / "frames", progress=progress)
    assert done == [1, 2]


def test_hashes_are_kept_when_a_file_cannot_be_read(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    clips = clips_of(examples)
    monkeypatch.setattr(file_hashes, "_YOUNG_NS", 0)
    missing = [*clips, AudioPart(path=str(tmp_path / "missing.wav"))]
    with pytest.raises(PalError, match=r"missing\.wav: cannot be read"):
        encode(missing, model.encoders, tmp_path / "frames")
    assert json.loads((tmp_path / "frames" / "files.json").read_text()).keys() == {clip.path for clip in clips}


def test_few_files_are_hashed_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "num_cores", lambda: 4)
    threads: set[int] = set()
    together = threading.Barrier(4, timeout=30)

    def read(path: str) -> str:
        threads.add(threading.get_ident())
        together.wait()  # breaks where fewer than four read at once
        return path

    monkeypatch.setattr(file_hashes, "hash_file", read)
    paths = [tmp_path / str(number) for number in range(8)]
    for path in paths:
        path.write_bytes(b"")
    file_hashes.FileHashes(tmp_path / "record").of_all(map(str, paths))
    assert len(threads) == 4


def test_a_clip_whose_frames_are_no_numbers_is_named(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    computed = encode_module.compute

    def too_large(*args: Any) -> Frames:
        frames = computed(*args)
        frames.layers[-1][2, 0, 0] = 1e5
        return Frames([layer.half() for layer in frames.layers], frames.lengths)

    monkeypatch.setattr(encode_module, "compute", too_large)
    clips = clips_of(examples)
    with pytest.raises(PalError, match=rf"{clips[2].path}: its frames do not fit float16; use --dtype float32 or bfloat16"):
        encode(clips, model.encoders, tmp_path / "frames", "float16")
    assert not shards(tmp_path / "frames")


# ---- the command, and a run that reads its frames

RECIPE = """
name: cached
frame_cache: {cache}
model:
  preset: pal
  encoder: {encoder}
  summary: {{type: pool, num_tokens: 2}}
  llm: {{model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
         num_key_value_heads: 2, max_position_embeddings: 512, tokenizer: {{vocab_size: 300}}}}
data: {{type: manifests, train: [{manifest}], test: [{manifest}]}}
stages: [{{train: {{connector: 1e-3, projector: 1e-3, llm: 1e-3}}, steps: 3, batch_size: 2}}]
"""


def test_encode_and_train(examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    weights = encoders.parse(FROZEN).build().state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    encoder = FROZEN | {"checkpoint": str(tmp_path)}
    recipe, manifest, cache = (str(tmp_path / name) for name in ("r.yaml", "m.jsonl", "frames"))
    text = RECIPE.format(cache=cache, encoder=json.dumps(encoder), manifest=manifest)
    Path(recipe).write_text(text)
    train = ["train", recipe, "--out", str(tmp_path / "run")]
    assert cli.main(train) == 2
    assert "no frame cache here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(["encode", manifest, cache, "--recipe", recipe, "--verify", "3", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{cache}\n"
    assert "4 new entries" in err
    assert "3 clips encoded again, the largest difference is" in err
    assert cli.main(train) == 0, capsys.readouterr().err
    assert cli.main([*train[:-1], str(tmp_path / "live"), "--set", "frame_cache=null"]) == 0
    cached, live = (
        [json.loads(line)["loss"] for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in ("run", "live")
    )
    assert cached == pytest.approx(live, abs=1e-6)
    capsys.readouterr()
    assert cli.main(["encode", manifest, cache, "--model", str(tmp_path / "run"), "--device", "cpu"]) == 0  # the same encoder
    assert "0 new entries" in capsys.readouterr().err
    for setting, words in (
        ("model.encoder.frozen=false", "is not frozen"),
        ("model.encoder.spec_augment=true", "spec_augment"),
        ("model.encoder.dropout=0.5", "another configuration"),
    ):
        assert cli.main(["train", recipe, "--out", str(tmp_path / "refused"), "--overwrite", "--set", setting]) == 2
        err = capsys.readouterr().err
        assert words in err.splitlines()[-1]
    Path(recipe).write_text(text.replace(json.dumps(encoder), json.dumps(FROZEN)))
    for arguments, words in (
        (["--recipe", recipe], "has no checkpoint"),
        ([], "either --model or --recipe"),
        (["--recipe", recipe, "--encoder", "ear"], "there is none of that name"),
    ):
        assert cli.main(["encode", manifest, cache, *arguments]) == 2
        assert words in capsys.readouterr().err


# ---- workers, and what is known of files


def test_workers_store_the_same_bytes(examples: list[Example], tmp_path: Path) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    for num in (0, 2):
        assert encode(clips_of(examples), model.encoders, tmp_path / str(num), num_workers=num) == 4
    ours, theirs = (shard.read_bytes() for num in (0, 2) for shard in shards(tmp_path / str(num)))
    assert ours == theirs


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_clip_that_cannot_be_read_is_named(workers: str, examples: list[Example], tmp_path: Path) -> None:
    model, _ = tiny_model(encoder=FROZEN)
    (tmp_path / "1.wav").write_text("no sound at all")
    with pytest.raises(PalError, match=r"^\S*/1\.wav: "):
        encode(clips_of(examples), model.encoders, tmp_path / "frames", num_workers=int(workers))


def test_files_are_read_once_and_again_when_they_change(
    examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: str) -> str:
        read.append(Path(path).name)
        return hash_file(path)

    monkeypatch.setattr(file_hashes, "hash_file", counted)
    model, _ = tiny_model(encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "young")
    assert json.loads((tmp_path / "young" / "files.json").read_text()) == {}  # they may change within the clock's resolution
    monkeypatch.setattr(file_hashes, "_YOUNG_NS", 0)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    read.clear()
    cache = FrameCache(tmp_path / "frames", model.encoders)
    assert all(cache.num_samples(part) for part in clips_of(examples))
    assert read == []
    stamps = os.stat(tmp_path / "1.wav")
    soundfile.write(tmp_path / "1.wav", noise(1.4, 9), RATE_HZ, "FLOAT")
    os.utime(tmp_path / "1.wav", ns=(stamps.st_atime_ns, stamps.st_mtime_ns))  # as a copy that keeps times
    with pytest.raises(PalError, match=r"no frames of .*1\.wav"):
        FrameCache(tmp_path / "frames", model.encoders).read(examples[1].audio[0])
    assert read == ["1.wav"]
    for content in ("[1]", "{", '{"a": [1, 2]}'):
        (tmp_path / "frames" / "files.json").write_text(content)
        with pytest.raises(PalError, match=r"files\.json: damaged; delete it"):
            FrameCache(tmp_path / "frames", model.encoders)


def test_a_cache_goes_to_another_process_and_reads_the_same(examples: list[Example], tmp_path: Path) -> None:
    model, processor = tiny_model(encoder=FROZEN)
    encode(clips_of(examples), model.encoders, tmp_path / "frames")
    collator = Collator(processor, frames=FrameCache(tmp_path / "frames", model.encoders))
    expected = collator.training_batch(examples)
    (made,) = in_workers(collator.shared_by(1).training_batch, [examples], 1)
    assert made.keys() == expected.keys()
    assert torch.equal(made["input_ids"], expected["input_ids"])
    assert torch.equal(made["input_features"].layers[0], expected["input_features"].layers[0])
