"""A clip that goes on: chunks give what the whole gives, and where they could not, the next legal time is named."""

from typing import Any

import numpy as np
import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.integration.memory import AudioMemory
from pal_audio.model.streaming import next_boundary_s
from tests.tiny import RATE_HZ, TINY_ENCODER, batch, message, noise, tiny_model

SOUND = noise(3.6, 4)
LOCAL: dict[str, dict[str, Any]] = {
    "plits": {"connector": {"type": "mlp", "stride": 5}},
    "lal": {"connector": {"type": "mlp", "stride": 5}},
    "pal": {"connector": {"type": "mlp", "stride": 5}, "summary": {"type": "pool", "tokens_per_s": 2.0}},
    "pal attention": {
        "connector": {"type": "pool", "tokens_per_s": 5.0},
        "summary": {"type": "pool", "tokens_per_s": 2.0, "kind": "attention"},
    },
    "flamingo": {"connector": {"type": "mlp", "stride": 5}},
}


def local_model(name: str, **options: Any) -> tuple[Any, Any]:
    return tiny_model("llama", name.split()[0], **(LOCAL[name] | options))


def encode(model: Any, processor: Any, sound: np.ndarray) -> AudioMemory:
    return model.encode_audio(**processor.collate_clips([processor.clip(sound, RATE_HZ)]))


def append(model: Any, processor: Any, memory: AudioMemory, sound: np.ndarray, clip: int = -1) -> AudioMemory:
    return model.append_audio(memory, **processor.collate_clips([processor.clip(sound, RATE_HZ)]), clip=clip)


def tensors(memory: AudioMemory) -> dict[str, torch.Tensor]:
    return memory._tensors()


def assert_same(one: AudioMemory, other: AudioMemory) -> None:
    for name, tensor in tensors(one).items():
        lengths = one.clips.num_slots_C if name == "slots" else one.clips.num_keys_SC[int(name.split(".")[1])]
        for clip, length in enumerate(lengths.tolist()):  # what stands behind a clip's length is never seen
            valid, axis = (tensor[clip], tensors(other)[name][clip]), 0 if name == "slots" else 1
            torch.testing.assert_close(*(item.narrow(axis, 0, length) for item in valid))
    for name in ("num_slots_C", "num_keys_SC", "spans_C"):
        assert torch.equal(getattr(one.clips, name), getattr(other.clips, name)), name
    assert one.widths == other.widths
    assert {name: item.tolist() for name, item in one.samples.items()} == {n: t.tolist() for n, t in other.samples.items()}


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("name", list(LOCAL))
def test_chunks_equal_the_whole_and_never_touch_what_is_there(name: str, positions: str) -> None:
    model, processor = local_model(name, positions=positions)
    memory = encode(model, processor, SOUND[:RATE_HZ])
    for start_s, end_s in ((1, 3), (3, 3.6)):
        before = memory
        frozen = {key: tensor.clone() for key, tensor in tensors(before).items()}
        memory = append(model, processor, before, SOUND[start_s * RATE_HZ : int(end_s * RATE_HZ)])
        for key, tensor in frozen.items():
            assert torch.equal(tensors(before)[key], tensor)
            axis = 1 if key == "slots" else 2
            assert torch.equal(tensors(memory)[key].narrow(axis, 0, tensor.shape[axis]), tensor)
    assert_same(memory, encode(model, processor, SOUND))
    inputs = batch(processor, [message(SOUND)])
    with torch.no_grad():
        torch.testing.assert_close(model(inputs["input_ids"], audio_memory=memory).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["lal", "plits"])
def test_whole_windows_in_the_same_shapes_are_bit_identical(name: str) -> None:
    model, processor = local_model(name)
    memory = encode(model, processor, SOUND[:RATE_HZ])
    for second in (1, 2):
        memory = append(model, processor, memory, SOUND[second * RATE_HZ : (second + 1) * RATE_HZ])
    alone = [encode(model, processor, SOUND[s * RATE_HZ : (s + 1) * RATE_HZ]) for s in range(3)]
    assert memory.clips.spans_C.tolist() == [3 * int(alone[0].clips.spans_C[0])]
    for key, tensor in tensors(alone[0]).items():  # the first second, which has the same times as alone
        axis = 1 if key == "slots" else 2
        assert torch.equal(tensors(memory)[key].narrow(axis, 0, tensor.shape[axis]), tensor)
        # The time code goes on: a later second is not what it would be at the start of a clip.
        later = tensors(memory)[key].narrow(axis, tensor.shape[axis], tensor.shape[axis])
        assert not torch.allclose(later, tensors(alone[1])[key], atol=1e-3)


def test_without_a_time_code_a_later_second_is_what_it_is_alone() -> None:
    model, processor = local_model("lal", connector={"type": "mlp", "stride": 5, "time_code": False})
    memory = append(model, processor, encode(model, processor, SOUND[:RATE_HZ]), SOUND[RATE_HZ : 2 * RATE_HZ])
    alone = encode(model, processor, SOUND[RATE_HZ : 2 * RATE_HZ])
    for key, tensor in tensors(alone).items():
        assert torch.equal(tensors(memory)[key][:, :, -tensor.shape[2] :], tensor)


def test_one_of_several_clips_goes_on() -> None:
    model, processor = local_model("pal")
    other, first = noise(2.2, 8), SOUND[: 2 * RATE_HZ]
    memory = model.encode_audio(**processor.collate_clips([processor.clip(clip, RATE_HZ) for clip in (first, other)]))
    memory = append(model, processor, memory, SOUND[2 * RATE_HZ :], clip=0)
    expected = model.encode_audio(**processor.collate_clips([processor.clip(clip, RATE_HZ) for clip in (SOUND, other)]))
    assert_same(memory, expected)
    memory = model.encode_audio(**processor.collate_clips([processor.clip(clip, RATE_HZ) for clip in (SOUND, other[:RATE_HZ])]))
    frozen = {name: tensor.clone() for name, tensor in tensors(memory).items()}
    append(model, processor, memory, other[RATE_HZ:])  # fits into what pads the shorter clip
    for name, tensor in frozen.items():
        assert torch.equal(tensors(memory)[name], tensor)
    with pytest.raises(PalError, match="clip 2 is not among"):
        append(model, processor, memory, SOUND, clip=2)


def test_a_saved_stream_goes_on(tmp_path: Any) -> None:
    model, processor = local_model("pal")
    encode(model, processor, SOUND[: 2 * RATE_HZ]).save(tmp_path / "live")
    memory = append(model, processor, AudioMemory.load(tmp_path / "live"), SOUND[2 * RATE_HZ :])
    assert_same(memory, encode(model, processor, SOUND))


def test_an_illegal_cut_names_the_next_legal_one() -> None:
    model, processor = local_model("lal")
    with pytest.raises(PalError, match=r"ends at 1.25 s, .* the next time at which it may is 2 s"):
        append(model, processor, encode(model, processor, SOUND[: RATE_HZ * 5 // 4]), SOUND)
    # 25 frames a window and 4 frames a token: windows and tokens end together every four seconds.
    model, processor = local_model("lal", connector={"type": "mlp", "stride": 4})
    assert next_boundary_s(model.config.audio, 0.0) == 4.0
    with pytest.raises(PalError, match=r"the next time at which it may is 4 s"):
        append(model, processor, encode(model, processor, SOUND[:RATE_HZ]), SOUND)
    model, processor = local_model("lal", connector={"type": "pool", "tokens_per_s": 1.5})
    assert next_boundary_s(model.config.audio, 0.0) == 2.0
    long = noise(4.0, 3)
    joined = append(model, processor, encode(model, processor, long[: 2 * RATE_HZ]), long[2 * RATE_HZ :])
    assert_same(joined, encode(model, processor, long))


def test_what_cannot_go_on_is_refused() -> None:
    for summary, words in (
        ({"type": "qformer", "queries": 3, "num_heads": 2}, r"streams\[1\]: connector 'qformer' reads the whole clip"),
        ({"type": "pool", "num_tokens": 3}, r"streams\[1\]: connector 'pool' reads the whole clip"),
    ):
        model, processor = local_model("pal", summary=summary)
        with pytest.raises(PalError, match=words):
            append(model, processor, encode(model, processor, SOUND[:RATE_HZ]), SOUND)
    model, processor = local_model("lal")
    memory = encode(model, processor, SOUND[:RATE_HZ])
    with pytest.raises(PalError, match="one clip"):
        model.append_audio(memory, **processor.collate_clips([processor.clip(SOUND, RATE_HZ)] * 2))
    other, _ = local_model("lal", seed=1)
    with pytest.raises(PalError, match="another model"):
        append(other, processor, memory, SOUND)
    memory.samples = {}
    with pytest.raises(PalError, match="does not say how many samples"):
        append(model, processor, memory, SOUND)
    several = {"encoder": "audio", "connector": {"type": "mlp"}, "integration": {"type": "plits"}}
    model, processor = local_model("plits")
    model.config.audio_config["streams"].append(several)
    with pytest.raises(PalError, match="several PLITS streams"):
        append(model, processor, memory, SOUND)


def test_encoders_of_different_windows_are_cut_where_both_end() -> None:
    model, _ = local_model("lal")
    audio = model.config.audio.model_dump(mode="json")
    audio["encoders"]["wide"] = {**TINY_ENCODER, "sampling_rate_hz": 32_000, "window_s": 1.5}
    audio["streams"].append({"encoder": "wide", "connector": {"type": "mlp", "stride": 1}, "integration": {"type": "lal"}})
    assert next_boundary_s(type(model.config.audio).parse(audio), 3.5) == 6.0
