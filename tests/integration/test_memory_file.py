"""An audio memory on disk: what is written is read again, and what is foreign or damaged is one clear line."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pal_audio.errors import PalError
from pal_audio.integration import memory_file
from pal_audio.integration.memory import AudioMemory
from tests.tiny import FAMILIES, batch, message, noise, tiny_model

CLIPS = [noise(0.4, 1), noise(1.3, 2), noise(2.6, 3)]
ARMS = ["plits", "lal", "pal", "flamingo"]


def encoded(model: Any, processor: Any, *numbers: int) -> tuple[Any, AudioMemory]:
    inputs = batch(processor, [message(*(CLIPS[number] for number in numbers))])
    return inputs, model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])


@pytest.mark.parametrize(
    ("family", "arm", "dtype"),
    [(family, arm, torch.float32) for family in FAMILIES for arm in ARMS] + [("llama", arm, torch.bfloat16) for arm in ARMS],
)
def test_a_saved_memory_serves_like_the_one_in_memory(family: str, arm: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, processor = tiny_model(family, arm)
    model.to(dtype)
    inputs, memory = encoded(model, processor, 0, 2)
    path = tmp_path / "sound.safetensors"
    memory.save(path)
    memory.select(torch.tensor([1, 0])).save(path)  # replaced, whole
    again = AudioMemory.load(path).select(torch.tensor([1, 0]))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert again.num_bytes == memory.num_bytes
    assert again.samples["audio"].tolist() == [len(CLIPS[0]), len(CLIPS[2])]
    with torch.no_grad():
        logits = model(inputs["input_ids"], audio_memory=again).logits
        assert torch.equal(logits, model(inputs["input_ids"], audio_memory=memory).logits)
        other, _ = tiny_model(family, arm, seed=1)
        with pytest.raises(PalError, match="made by another model"):
            other(inputs["input_ids"], audio_memory=again)


@pytest.mark.parametrize("arm", ARMS)
def test_concatenated_memories_are_the_clips_encoded_together(arm: str) -> None:
    model, processor = tiny_model("llama", arm)
    parts = [encoded(model, processor, number)[1] for number in (0, 2, 1)]
    inputs, together = encoded(model, processor, 0, 2, 1)
    joined = AudioMemory.concatenate(parts)
    assert joined.num_clips == 3
    assert joined.widths == together.widths
    assert joined.samples["audio"].tolist() == together.samples["audio"].tolist()
    with torch.no_grad():
        ours = model(inputs["input_ids"], audio_memory=joined).logits
        torch.testing.assert_close(ours, model(inputs["input_ids"], audio_memory=together).logits)
    other, other_processor = tiny_model("llama", arm, seed=1)
    with pytest.raises(PalError, match="memory 1 was made by another model"):
        AudioMemory.concatenate([parts[0], encoded(other, other_processor, 0)[1]])
    with pytest.raises(PalError, match="no memory"):
        AudioMemory.concatenate([])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model, processor = tiny_model("llama", "pal")
    path = tmp_path_factory.mktemp("memory") / "m.safetensors"
    encoded(model, processor, 0, 1)[1].save(path)
    return path.read_bytes()


def changed(content: bytes, **fields: Any) -> bytes:
    """The file with other header entries; safetensors' own header is JSON behind its length."""
    (size,) = struct.unpack("<Q", content[:8])
    outer = json.loads(content[8 : 8 + size])
    header = json.loads(outer["__metadata__"][memory_file.ENTRY]) | fields
    outer["__metadata__"][memory_file.ENTRY] = json.dumps(header)
    text = json.dumps(outer).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": 1}, "format 1, this version reads 2"),
        ({"nonsense": 1}, "header is not understood"),
        ({"spans": [1.5, 2]}, "header is not understood"),
        ({"num_slots": [float("inf"), 1]}, "header is not understood"),
        ({"spans": [-1, 2]}, "negative"),
        ({"spans": [2**40, 2]}, "too large"),
        ({"num_slots": [1]}, "different numbers"),
        ({"layers": []}, "different numbers"),
        ({"num_keys": [[10_000, 1]]}, "longer than its keys"),
        ({"num_slots": [10_000, 1]}, "slots has shape"),
        ({"layers": [[0, 1, 2]]}, "not those of its layers"),
        ({"widths": [10_000]}, "has shape"),
        ({"crc32": 1}, "checksum"),
        ({"spans": [40, 50]}, "checksum"),
        ({"num_keys": [[1, 2]]}, "checksum"),
        ({"samples": {"audio": [1, 2]}}, "checksum"),
        ({"fingerprint": "0" * 64}, "checksum"),
        ({"fingerprint": "../../etc"}, "header is not understood"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(saved: bytes, fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed(saved))
    AudioMemory.load(path)
    path.write_bytes(changed(saved, **fields))
    with pytest.raises(PalError, match=words) as caught:
        AudioMemory.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["layers", "samples"])
def test_a_forged_memory_is_one_clear_line(saved: bytes, what: str, tmp_path: Path) -> None:
    """Its fingerprint and checksum are right, its content is not what the model's own would be."""
    model, processor = tiny_model("llama", "pal")
    inputs, _ = encoded(model, processor, 0, 1)
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved)
    memory = AudioMemory.load(path)
    if what == "layers":
        memory.keys, memory.values = ([{0: side[0][0]}] for side in (memory.keys, memory.values))
    else:
        memory.samples = {"other": memory.samples["audio"]}
    memory.save(path)
    with pytest.raises(PalError, match="is not whole") as caught:
        model(inputs["input_ids"], audio_memory=AudioMemory.load(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    flipped = saved[:-3] + bytes([saved[-3] ^ 0x10]) + saved[-2:]
    for content, words in ((saved[:-7], "no whole"), (b"", "no whole"), (b"RIFF" * 9, "no whole"), (flipped, "checksum")):
        path.write_bytes(content)
        with pytest.raises(PalError, match=words):
            AudioMemory.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(PalError, match="no audio memory"):
        AudioMemory.load(path)
    path.write_bytes(saved)
    with pytest.raises(PalError, match="over the limit of 100"):
        AudioMemory.load(path, max_bytes=100)
    with pytest.raises(PalError, match="no such file"):
        AudioMemory.load(tmp_path / "nope")
    with pytest.raises(PalError, match="no such file"):
        AudioMemory.load(tmp_path)


def test_a_failed_save_leaves_what_was_there(saved: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(saved)
    memory = AudioMemory.load(path)
    with pytest.raises(PalError, match="there is no folder"):
        memory.save(tmp_path / "none" / "m.safetensors")
    with pytest.raises(PalError, match="is a folder"):
        memory.save(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(memory_file, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        memory.save(path)
    assert path.read_bytes() == saved
    assert len(list(tmp_path.iterdir())) == 1
