"""Every encoder hears every clip: input for some of them alone, and streams that do not fit their encoders, are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pal_audio.data.manifest import read_manifest
from pal_audio.encoders.base import Samples
from pal_audio.errors import PalError
from pal_audio.model import AudioConfig, ClipFeatures, PalConfig, preset
from tests.model.test_mixed import LAL, LFST, MLP, PLITS, mixed, stream
from tests.tiny import RATE_HZ, TINY_ENCODER, TINY_ENCODERS, batch, message, noise, tiny_mix, tiny_model

CLIP = noise(0.5)
EARS = {"a": TINY_ENCODER, "b": TINY_ENCODERS["sound"]}


@pytest.fixture(scope="module")
def multi() -> tuple[Any, Any]:
    return tiny_model("llama", "pal-multi")


def test_what_a_processor_gives_has_every_encoder(multi: Any) -> None:
    _, processor = multi
    inputs = batch(processor, [message(CLIP), message(CLIP, CLIP)])
    for key in ("input_features", "audio_num_samples"):
        assert set(inputs[key]) == {"speech", "sound", "language"}
    assert {name: len(item) for name, item in inputs["audio_num_samples"].items()} == {"speech": 3, "sound": 3, "language": 3}


def without(inputs: dict[str, Any], key: str, name: str) -> None:
    inputs[key] = {other: item for other, item in inputs[key].items() if other != name}


def fewer(inputs: dict[str, Any], key: str, name: str) -> None:
    inputs[key] = inputs[key] | {name: inputs[key][name][:-1]}


WRONG_INPUTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "features of one missing": (
        lambda inputs: without(inputs, "input_features", "sound"),
        r"has clips for encoders \['language', 'speech'\], but the model has \['language', 'sound', 'speech'\]",
    ),
    "lengths of one missing": (lambda inputs: without(inputs, "audio_num_samples", "speech"), "every encoder hears every clip"),
    "features of a stranger": (
        lambda inputs: inputs["input_features"].update(whisper=inputs["input_features"]["speech"]),
        "encoders .*'whisper'.*, but the model has",
    ),
    "a clip less for one": (
        lambda inputs: fewer(inputs, "audio_num_samples", "language"),
        r"has clips \{'speech': 2, 'sound': 2, 'language': 1\} by encoder; every encoder hears every clip",
    ),
    "a window less for one": (
        lambda inputs: fewer(inputs, "input_features", "sound"),
        "encoder 'sound': features hold 1 windows",
    ),
    "a tensor": (lambda inputs: inputs.update(input_features=torch.zeros(2, 4, 16)), "pass a dict by encoder name"),
    "a list": (lambda inputs: inputs.update(audio_num_samples=[8000, 8000]), "dicts by encoder name, not list"),
}


CALLS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "training": lambda model, inputs: model(**inputs),
    "inference": torch.no_grad()(lambda model, inputs: model(**inputs)),
    "generate": lambda model, inputs: model.generate(**inputs, max_new_tokens=1),
    "encode_audio": lambda model, inputs: model.encode_audio(inputs["input_features"], inputs["audio_num_samples"]),
}


@pytest.mark.parametrize("what", list(WRONG_INPUTS))
@pytest.mark.parametrize("call", list(CALLS))
def test_clips_for_some_encoders_alone_are_refused_by_the_model(call: str, what: str, multi: Any) -> None:
    model, processor = multi
    inputs = dict(batch(processor, [message(CLIP), message(CLIP)]))
    change, words = WRONG_INPUTS[what]
    change(inputs)
    with pytest.raises(PalError, match=words) as caught:
        CALLS[call](model, inputs)
    assert "\n" not in str(caught.value)


WRONG_CLIPS: dict[str, tuple[Any, str]] = {
    "a sound for each": ({"speech": CLIP, "sound": CLIP, "language": CLIP}, "one sound for all encoders: give the clip itself"),
    "a sound for one": ({"speech": "a.wav"}, "one sound for all encoders"),
    "features of one": (
        ClipFeatures({"sound": torch.zeros(1, 4, 16)}, {"sound": 12_000}),
        r"this clip has features for encoders \['sound'\], but the model has",
    ),
}


@pytest.mark.parametrize("what", list(WRONG_CLIPS))
def test_clips_for_some_encoders_alone_are_refused_by_the_processor(what: str, multi: Any) -> None:
    _, processor = multi
    clip, words = WRONG_CLIPS[what]
    with pytest.raises(PalError, match=words):
        batch(processor, [message(clip)])
    with pytest.raises(PalError, match=words):
        processor("<|audio|>what?", clip, sampling_rate=RATE_HZ)
    if isinstance(clip, ClipFeatures):
        with pytest.raises(PalError, match=words):
            processor.collate_clips([clip])


def test_a_clip_whose_lengths_lack_an_encoder_is_refused(multi: Any) -> None:
    _, processor = multi
    clip = processor.clip(CLIP, RATE_HZ)
    del clip.num_samples["sound"]
    with pytest.raises(PalError, match="every encoder hears every clip"):
        processor.collate_clips([clip])


def test_a_part_of_a_message_or_manifest_names_no_encoder(multi: Any, tmp_path: Path) -> None:
    _, processor = multi
    parts = [{"type": "audio", "audio": CLIP, "encoder": "speech"}, {"type": "text", "text": "what?"}]
    with pytest.raises(PalError, match="message 0: an audio part has no key 'encoder': every encoder hears every clip"):
        batch(processor, [[{"role": "user", "content": parts}]])
    line = '{"id": "a", "messages": [{"role": "user", "content": [{"type": "audio", "path": "a.wav", "encoder": "speech"}]}]}\n'
    (tmp_path / "m.jsonl").write_text(line)
    with pytest.raises(PalError, match=r"m.jsonl.*line 1.*unknown key 'encoder'"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_memory_of_other_streams_is_refused() -> None:
    model, processor = mixed("lfst by lal")
    inputs = batch(processor, [message(CLIP)])
    for name in ("lfst by plits", "lfst beside its own encoder", "lal, lal"):
        other, its_processor = mixed(name)
        theirs = batch(its_processor, [message(CLIP)])
        memory = other.encode_audio(theirs["input_features"], theirs["audio_num_samples"])
        with torch.no_grad(), pytest.raises(PalError, match="made by another model"):
            model(inputs["input_ids"], audio_memory=memory)


def test_a_clip_read_by_lfst_cannot_go_on(multi: Any) -> None:
    model, processor = mixed("lfst by lal")
    clip = processor.collate_clips([processor.clip(noise(3.5), RATE_HZ)])
    memory = model.encode_audio(**clip)
    with pytest.raises(PalError, match=r"streams\[0\]: connector 'lfst' reads the whole clip, so a clip cannot go on"):
        model.append_audio(memory, **clip)


def test_a_clip_of_several_encoders_goes_on_where_all_their_windows_end() -> None:
    """Windows of 0.64 and 0.96 s end together after 1.92 s; the error before that names it."""
    ears = {"a": EARS["a"] | {"window_s": 0.64}, "b": EARS["a"] | {"sampling_rate_hz": 8_000, "window_s": 0.96}}
    local = {"type": "mlp", "stride": 1}
    model, processor = tiny_mix({"encoders": ears, "streams": [stream("a", local, PLITS), stream("b", local, LAL)]})
    sound, end = noise(3.0, 3), round(1.92 * RATE_HZ)
    parts = [processor.collate_clips([processor.clip(part, RATE_HZ)]) for part in (sound[:end], sound[end:])]
    whole = processor.collate_clips([processor.clip(sound, RATE_HZ)])
    memory = model.append_audio(model.encode_audio(**parts[0]), **parts[1])
    inputs = batch(processor, [message(sound)])
    with torch.no_grad():
        expected = model(inputs["input_ids"], audio_memory=model.encode_audio(**whole)).logits
        torch.testing.assert_close(model(inputs["input_ids"], audio_memory=memory).logits, expected, rtol=1e-5, atol=2e-5)
    early = processor.collate_clips([processor.clip(sound[:RATE_HZ], RATE_HZ)])
    with pytest.raises(PalError, match=r"the next time at which it may is 1\.92 s"):
        model.append_audio(model.encode_audio(**early), **parts[1])


WRONG_STREAMS: list[tuple[dict[str, Any], str]] = [
    (stream(["a", "b"], MLP, LAL), r"streams.0: connector 'mlp' reads one encoder, not \['a', 'b'\]; write a stream for each"),
    (stream(["a"], MLP, LAL), "connector 'mlp' reads one encoder"),
    (stream("a", LFST, PLITS), "connector 'lfst' reads 2 encoders: write `encoder:` and a list of 2 names"),
    (stream(["a", "b", "c"], LFST, PLITS), "connector 'lfst' reads 2 encoders"),
    (stream(["a", "a"], LFST, PLITS), "streams.0.encoder: names an encoder twice"),
    (stream(["a", "c"], LFST, PLITS), r"streams\[0\]: encoder 'c' is not among \['a', 'b'\]"),
    (stream([], LFST, PLITS), "streams.0.encoder: must be the name of an encoder, or a list of names"),
    (stream(["a", 3], LFST, PLITS), "must be the name of an encoder, or a list"),  # type: ignore[list-item]
    (stream("a", MLP, LAL), r"encoders \['b'\] are read by no stream"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG_STREAMS, ids=[words[:40] for _, words in WRONG_STREAMS])
def test_streams_that_do_not_fit_their_encoders_are_one_clear_line(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        AudioConfig.parse({"encoders": EARS, "streams": [wrong]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.b", "", "keys", 3])
def test_a_name_that_no_part_of_a_model_can_have_is_refused(name: Any) -> None:
    with pytest.raises(PalError, match=rf"encoders: {name!r} cannot name a part of a model"):
        AudioConfig.parse({"encoders": {name: TINY_ENCODER}, "streams": [stream(name, MLP, LAL)]})


def test_a_sequence_for_each_layer_does_not_go_through_lfst() -> None:
    ears = EARS | {"a": TINY_ENCODER | {"encoder_layers": "per_llm_layer"}}
    with pytest.raises(PalError, match=r"streams\[0\]: .*per_llm_layer.*of 'a', but connector 'lfst' reads one of each encoder"):
        AudioConfig.parse({"encoders": ears, "streams": [stream(["a", "b"], LFST, LAL)]})


def test_the_names_of_a_stream_survive_a_configuration() -> None:
    audio = preset("lfst", encoders={"sound": EARS["b"], "language": EARS["a"]})
    assert PalConfig(audio_config=audio).audio.streams[0].encoders == ("language", "sound")


def test_a_model_in_bfloat16_hears_samples_as_they_are() -> None:
    """An encoder that makes its own features makes them of float32, and the model in between must not round what it hears."""
    model, processor = tiny_model("llama", "lal")
    model.to(torch.bfloat16)
    clip = {"source": noise(0.9, 3), "sampling_rate": RATE_HZ}
    features = processor.collate_clips([processor.clip(**clip)])
    processor.front_ends = {name: Samples(encoder.config.window_samples) for name, encoder in model.encoders.items()}
    samples = processor.collate_clips([processor.clip(**clip)])
    assert (features["input_features"].ndim, samples["input_features"].ndim) == (3, 2)
    (made, _), (taken, _) = (model.get_audio_features(**batch)[0] for batch in (features, samples))
    torch.testing.assert_close(taken, made, rtol=0, atol=0)
