"""Forty minutes of composed sound: bounded memory, both positions, and chunks as good as the whole."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.integration.memory import AudioMemory
from tests.tiny import RATE_HZ, batch, message, noise, tiny_model

MINUTES, CHUNK_S = 40, 120
CONNECTOR = {"type": "pool", "tokens_per_s": 1.0}
# For the windows of a pass; all of them at once take 56 MiB. The features are the caller's.
MOST_BYTES = 16 * 2**20


def composed() -> np.ndarray:
    """A hum throughout, a tone of another pitch every minute, and a burst of noise in the last minute, float32."""
    second = np.arange(RATE_HZ, dtype=np.float32) / RATE_HZ
    wave = np.tile(0.02 * np.sin(2 * np.pi * 100 * second, dtype=np.float32), MINUTES * 60)
    for minute in range(MINUTES):
        start = minute * 60 * RATE_HZ
        wave[start : start + RATE_HZ] += 0.2 * np.sin(2 * np.pi * (200 + 50 * minute) * second, dtype=np.float32)
    wave[-30 * RATE_HZ : -20 * RATE_HZ] += 0.1 * np.random.default_rng(0).standard_normal(10 * RATE_HZ, dtype=np.float32)
    return wave


def model_and_processor(positions: str, max_positions: int) -> tuple[Any, Any]:
    llm = {"max_position_embeddings": max_positions}
    return tiny_model("qwen3", "lal", positions=positions, connector=CONNECTOR, llm=llm)


@pytest.fixture(scope="module")
def features() -> dict[str, Any]:
    """The clip's features, which do not depend on positions."""
    _, processor = model_and_processor("zero", 64)
    return processor.collate_clips([processor.clip(composed(), RATE_HZ)])


def peak_bytes() -> int:
    """The most memory of this process since the mark was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process can be reset on Linux alone")
def test_encoding_takes_bounded_memory(features: dict[str, Any]) -> None:
    model, _ = model_and_processor("zero", 64)
    short = {"input_features": features["input_features"][:32], "audio_num_samples": torch.tensor([32 * RATE_HZ])}
    model.encode_audio(**short)  # what is allocated once for all
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    memory = model.encode_audio(**features)
    assert memory.clips.spans_C.tolist() == [MINUTES * 60]
    assert peak_bytes() - before < MOST_BYTES + 2 * memory.num_bytes


@pytest.mark.parametrize("positions", ["span", "zero"])
def test_forty_minutes(positions: str, features: dict[str, Any]) -> None:
    model, processor = model_and_processor(positions, 4096 if positions == "span" else 64)
    memory = model.encode_audio(**features)
    live, step = None, CHUNK_S * RATE_HZ
    for start in range(0, MINUTES * 60, CHUNK_S):
        chunk = {"input_features": features["input_features"][start : start + CHUNK_S], "audio_num_samples": torch.tensor([step])}
        live = model.encode_audio(**chunk) if live is None else model.append_audio(live, **chunk)
    assert isinstance(live, AudioMemory)
    assert live.clips.num_keys_SC.tolist() == memory.clips.num_keys_SC.tolist() == [[MINUTES * 60]]
    ids = batch(processor, [message(noise(1.0))])["input_ids"]  # LAL: a clip of any length is one marker
    with torch.no_grad():
        logits = model(ids, audio_memory=memory).logits
        torch.testing.assert_close(model(ids, audio_memory=live).logits, logits, rtol=1e-5, atol=2e-5)
        quiet = {**features, "input_features": features["input_features"].clone()}
        quiet["input_features"][-30:-20] = quiet["input_features"][-40:-30]
        assert (model(ids, audio_memory=model.encode_audio(**quiet)).logits - logits).abs().max() > 1e-4
        cached = model.generate(ids, audio_memory=memory, max_new_tokens=3, do_sample=False)
        assert torch.equal(cached, model.generate(ids, audio_memory=live, max_new_tokens=3, do_sample=False, use_cache=False))


def test_a_span_beyond_the_context_names_zero(features: dict[str, Any]) -> None:
    model, processor = model_and_processor("span", 60 * MINUTES + 5)  # enough for the clip, not for the text beside it
    ids = batch(processor, [message(noise(1.0))])["input_ids"]
    with torch.no_grad(), pytest.raises(PalError, match=r"trained on 2405; use `positions: zero`"):
        model(ids, audio_memory=model.encode_audio(**features))


@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
def test_a_clip_longer_than_the_context_is_refused_before_it_is_encoded(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", arm, llm={"max_position_embeddings": 64})
    encoder = model.encoders["audio"]
    frames_a_token = 4
    limit_s = 64 * frames_a_token / encoder.config.frame_rate_hz
    monkeypatch.setattr(type(encoder), "forward", lambda *_, **__: pytest.fail("the clip was encoded"))
    inputs = batch(processor, [message(noise(0.3), noise(1.25 * limit_s))])
    long = rf"clip 2 of 2 lasts {1.25 * limit_s:.1f} s and takes 80 positions"
    what = long + f", but the LLM was trained on 64, about {limit_s:.1f} s of sound"
    with torch.no_grad(), pytest.raises(PalError, match=what):
        model(**inputs)
    with pytest.raises(PalError, match=what):
        model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
