"""Models of any streams: several encoders of different rates, by every integration, alone and beside each other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio.integration.memory import AudioMemory
from pal_audio.model import PalForConditionalGeneration, PalProcessor, load
from pal_audio.model.decoding import greedy
from pal_audio.model.presets import ENCODERS_OF
from tests.model.test_encoder_matrix import ENCODERS
from tests.model.test_invariants import CONVERSATIONS, check_generation, check_live_path, check_reference, valid_logits
from tests.model.test_packing import check_packed
from tests.model.test_streams import BF16_TOLERANCE
from tests.model.test_turns import check_sixteen_clips, check_turns
from tests.tiny import TINY_ENCODERS, batch, message, noise, tiny_mix, tiny_model

MLP = {"type": "mlp", "stride": 4}
LFST = {"type": "lfst", "queries": 5, "num_heads": 2}
PLITS, LAL, FLAMINGO = {"type": "plits"}, {"type": "lal"}, {"type": "flamingo", "layers": "every:2"}


def stream(encoder: str | list[str], connector: dict[str, Any], integration: dict[str, Any]) -> dict[str, Any]:
    return {"encoder": encoder, "connector": connector, "integration": integration}


MIXES: dict[str, list[dict[str, Any]]] = {
    "plits, lal": [stream("speech", {"type": "mlp", "stride": 8}, PLITS), stream("sound", MLP, LAL)],
    "lal, flamingo": [stream("sound", MLP, LAL | {"layers": "from:1"}), stream("language", MLP, FLAMINGO)],
    "plits, flamingo": [stream("speech", {"type": "pool", "num_tokens": 3}, PLITS), stream("sound", MLP, FLAMINGO)],
    "lal, lal": [stream("sound", MLP, LAL | {"layers": [0, 2]}), stream("language", MLP, LAL | {"layers": [1, 2]})],
    "plits, plits": [stream("language", MLP, PLITS), stream("sound", {"type": "pool", "num_tokens": 2}, PLITS)],
    "lfst by plits": [stream(["language", "sound"], LFST, PLITS)],
    "lfst by lal": [stream(["language", "sound"], LFST, LAL | {"projector": "shared"})],
    "lfst by flamingo": [stream(["sound", "language"], LFST, FLAMINGO)],
    "lfst beside its own encoder": [stream(["language", "sound"], LFST, PLITS), stream("sound", MLP, LAL)],
    "plits, lal, flamingo": [stream("speech", MLP, PLITS), stream("sound", MLP, LAL), stream("language", MLP, FLAMINGO)],
    "speech by plits, lfst by lal": [stream("speech", MLP, PLITS), stream(["language", "sound"], LFST, LAL)],
}
every_mix = pytest.mark.parametrize("name", list(MIXES))


def mixed(name: str, family: str = "llama", **shared: Any) -> tuple[PalForConditionalGeneration, PalProcessor]:
    read = {
        encoder
        for item in MIXES[name]
        for encoder in ([item["encoder"]] if isinstance(item["encoder"], str) else item["encoder"])
    }
    encoders = {role: options for role, options in TINY_ENCODERS.items() if role in read}
    return tiny_mix({"encoders": encoders, "streams": MIXES[name], **shared}, family)


@pytest.mark.parametrize("positions", ["span", "zero"])
@every_mix
def test_equals_the_reference_in_a_batch_with_either_padding(name: str, positions: str) -> None:
    check_reference(*mixed(name, positions=positions))


@pytest.mark.parametrize("name", ["plits, lal, flamingo", "lfst by lal", "lfst by plits"])
@pytest.mark.parametrize("family", ["gemma3_text", "olmo2"])
def test_equals_the_reference_in_other_families(family: str, name: str) -> None:
    check_reference(*mixed(name, family, summary_sees_audio=False))


@pytest.mark.parametrize("arm", ["pal-multi", "lfst"])
def test_presets_equal_the_reference(arm: str) -> None:
    check_reference(*tiny_model("llama", arm))


MEMBERS = {"speech": ENCODERS["whisper"], "sound": ENCODERS["sslam"], "language": ENCODERS["clap"]}


@pytest.mark.parametrize("arm", ["pal-multi", "lfst"])
def test_presets_of_whisper_sslam_and_clap_equal_the_reference(arm: str) -> None:
    encoders = {role: MEMBERS[role] for role in ENCODERS_OF[arm]}
    check_reference(*tiny_model("llama", arm, encoders=encoders))


@pytest.mark.parametrize("name", ["speech by plits, lfst by lal", "plits, lal, flamingo"])
def test_bfloat16_stays_near_float32(name: str) -> None:
    """Live, from a memory and one by one, within the share of the logits' spread that other models keep."""
    model, processor = mixed(name)
    conversations = [conversation for conversation, _ in CONVERSATIONS]
    inputs = batch(processor, conversations)
    with torch.no_grad():
        exact = torch.cat(valid_logits(model(**inputs), inputs))
        model.to(torch.bfloat16)
        low = torch.cat(valid_logits(model(**inputs), inputs)).float()
        alone = torch.cat([model(**batch(processor, [item])).logits[0] for item in conversations]).float()
    live = torch.cat(valid_logits(model(**inputs), inputs)).float()
    for found, expected in ((low, exact), (alone, low), (live, low)):
        assert (found - expected).pow(2).mean().sqrt() < BF16_TOLERANCE * exact.std()


@every_mix
def test_packed_equals_unpacked(name: str) -> None:
    check_packed(*mixed(name), checkpointing=False)


@pytest.mark.parametrize("name", ["lfst by lal", "plits, lal, flamingo"])
def test_packed_equals_unpacked_with_checkpointing(name: str) -> None:
    check_packed(*mixed(name), checkpointing=True)


@every_mix
def test_generation_cached_equals_recomputed(name: str) -> None:
    check_generation(*mixed(name))


@every_mix
def test_the_static_decoder_gives_the_tokens_of_generate(name: str) -> None:
    model, processor = mixed(name)
    inputs = batch(processor, [conversation for conversation, _ in CONVERSATIONS])
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=8), expected)


@every_mix
def test_the_live_path_equals_the_memory_and_trains_every_part(name: str) -> None:
    check_live_path(*mixed(name))


@every_mix
def test_a_memory_comes_back_from_disk_to_a_model_that_came_back_too(name: str, tmp_path: Path) -> None:
    """Encoders are sorted in a saved configuration: their order must not matter."""
    model, processor = mixed(name)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    inputs = batch(processor, [CONVERSATIONS[1][0], CONVERSATIONS[0][0]])
    model.encode_audio(inputs["input_features"], inputs["audio_num_samples"]).save(tmp_path / "clips")
    memory = AudioMemory.load(tmp_path / "clips")
    again, its_processor = load(tmp_path / "model")
    with torch.no_grad():
        expected = model(**inputs).logits
        for one in (model, again):
            assert torch.equal(one(inputs["input_ids"], inputs["attention_mask"], audio_memory=memory).logits, expected)
    theirs = batch(its_processor, [CONVERSATIONS[1][0], CONVERSATIONS[0][0]])
    assert torch.equal(theirs["input_ids"], inputs["input_ids"])
    assert again.config.audio == model.config.audio


@pytest.mark.parametrize("positions", ["span", "zero"])
@every_mix
def test_new_clips_in_later_turns_equal_recomputation(name: str, positions: str) -> None:
    check_turns(*mixed(name, positions=positions))


@pytest.mark.parametrize("name", ["speech by plits, lfst by lal", "plits, lal, flamingo"])
def test_sixteen_clips_in_a_message_equal_the_reference(name: str) -> None:
    check_sixteen_clips(*mixed(name))


def test_the_longest_stream_sets_the_span_and_queries_count_as_they_are() -> None:
    _, processor = mixed("lfst beside its own encoder")
    clip = processor.clip(noise(1.0), 16_000)
    audio = processor._audio
    lengths = [audio.stream_length(item, clip.num_samples) for item in audio.streams]
    assert lengths[0] == 5 == processor.num_slots(clip)
    assert lengths[1] > 5
    assert audio.span(clip.num_samples) == max(lengths)
    assert batch(processor, [message(noise(1.0))])["input_ids"].eq(processor.audio_slot_token_id).sum() == 5
