"""`connector.dropout`: whole channels of a clip's frames, in training alone, whichever way sound enters."""

import pytest
import torch

from pal_audio import connectors
from pal_audio.connectors.base import drop_channels
from pal_audio.errors import PalError
from tests.tiny import batch, message, noise, tiny_model

DROPPED = {"type": "mlp", "stride": 4, "dropout": 0.5}


def test_a_channel_is_gone_for_the_whole_clip_and_the_rest_makes_up_for_it() -> None:
    torch.manual_seed(0)
    frames_CTD = torch.ones(64, 7, 50)
    dropped_CTD = drop_channels(frames_CTD, 0.25, training=True)
    assert (dropped_CTD == dropped_CTD[:, :1]).all(), "the same from the first frame to the last"
    torch.testing.assert_close(dropped_CTD.unique(), torch.tensor([0.0, 4 / 3]))
    assert 0.2 < (dropped_CTD[:, 0] == 0).float().mean() < 0.3
    assert (dropped_CTD[0, 0] != dropped_CTD[1, 0]).any(), "each clip has its own"
    assert drop_channels(frames_CTD, 0.25, training=False) is frames_CTD
    assert drop_channels(frames_CTD, 0.0, training=True) is frames_CTD


@pytest.mark.parametrize("chance", [-0.1, 1.0])
def test_a_chance_that_is_none(chance: float) -> None:
    with pytest.raises(PalError, match="dropout"):
        connectors.parse({"type": "mlp", "dropout": chance})


@pytest.mark.parametrize("arm", ["plits", "lal", "pal", "lfst", "flamingo"])
def test_every_arm_drops_in_training_and_nowhere_else(arm: str) -> None:
    dropped = {"type": "lfst", "queries": 5, "dropout": 0.5} if arm == "lfst" else DROPPED
    plain = {key: value for key, value in dropped.items() if key != "dropout"}
    (with_it, processor), (without, _) = (tiny_model("llama", arm, connector=connector) for connector in (dropped, plain))
    inputs = batch(processor, [message(noise(1.3, 1)), message(noise(0.6, 2))])
    torch.testing.assert_close(with_it(**inputs).logits, without(**inputs).logits, atol=0, rtol=0)
    with_it.train()
    without.train()
    for encoder in (*with_it.encoders.values(), *without.encoders.values()):
        encoder.eval()  # has dropout of its own
    first, second = (with_it(**inputs).logits for _ in range(2))
    assert not torch.allclose(first, second)
    first.sum().backward()
    assert all(parameter.grad is not None for parameter in with_it.streams.parameters())
    torch.testing.assert_close(without(**inputs).logits, without(**inputs).logits, atol=0, rtol=0)


def test_memories_do_not_depend_on_it() -> None:
    (with_it, processor), (without, _) = (
        tiny_model("llama", "pal", connector=connector) for connector in (DROPPED, {"type": "mlp", "stride": 4})
    )
    assert with_it.audio_fingerprint() == without.audio_fingerprint()
    inputs = batch(processor, [message(noise(1.3, 1))])
    memory = with_it.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    with torch.no_grad():
        logits = without(inputs["input_ids"], attention_mask=inputs["attention_mask"], audio_memory=memory).logits
    torch.testing.assert_close(logits, with_it(**inputs).logits)
    wider, _ = tiny_model("llama", "pal", connector={"type": "mlp", "stride": 2})
    assert wider.audio_fingerprint() != without.audio_fingerprint()
