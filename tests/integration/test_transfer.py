"""What a step sends to the model's device is small: nothing of the size of the audio, which would wait for a busy GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig

from pal_audio import connectors
from pal_audio.encoders.base import length_mask
from pal_audio.integration.packing import Packing
from pal_audio.integration.positions import lay_out, place
from pal_audio.transfer import send

ROWS, TOKENS = 4, 300
META = torch.device("meta")


class Sent(TorchDispatchMode):
    """Remembers the largest tensor that went from the CPU to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].is_cpu and not result.is_cpu:
            self.largest = max(self.largest, args[0].numel())
        return result


@pytest.mark.parametrize("mode", ["span", "zero"])
@pytest.mark.parametrize("summary_sees_audio", [True, False])
def test_a_clip_a_row_is_laid_out_on_the_device(mode: str, summary_sees_audio: bool) -> None:
    ids = torch.tensor([[1, 90, 91, 2, 3]] * ROWS)
    lengths, slots, spans = torch.tensor([300, 7, 1, 299]), torch.ones(ROWS, dtype=torch.int64), torch.tensor([300, 9, 1, 300])
    placement = place(ids, torch.ones_like(ids), (90, 91), slots, spans, mode)
    with Sent() as sent:
        layout = lay_out(placement, lengths, slots, spans, TOKENS, mode, summary_sees_audio, device=META)
    assert layout.positions_BA.device == layout.after_BA.device == layout.source_BA.device == META
    assert layout.positions_BA.shape == layout.after_BA.shape == layout.source_BA.shape == (ROWS, TOKENS)
    assert 0 < sent.largest <= ROWS


def test_clips_without_tokens_are_laid_out() -> None:
    ids, nothing = torch.tensor([[90, 90, 1]]), torch.zeros(2, dtype=torch.int64)
    placement = place(ids, torch.ones_like(ids), (90, 91), nothing, nothing, "zero")
    layout = lay_out(placement, nothing, nothing, nothing, 0, "zero", True)
    assert layout.positions_BA.tolist() == [[0.0]]
    assert layout.after_BA.tolist() == [[torch.iinfo(torch.int64).max]]


def test_masks_and_connectors_send_lengths() -> None:
    lengths = torch.tensor([300, 7, 1, 299])
    connector = connectors.build(connectors.parse({"type": "mlp", "stride": 2}), 8, 16, 50.0).to(META)
    with Sent() as sent:
        assert length_mask(lengths, TOKENS, META).device == META
        connector(torch.empty(ROWS, TOKENS, 8, device=META), lengths)
    assert 0 < sent.largest <= ROWS


def test_rows_without_padding_are_packed_where_they_are() -> None:
    config = LlamaConfig(num_hidden_layers=2)
    full, padded = torch.ones(ROWS, TOKENS, dtype=torch.int64), torch.ones(ROWS, TOKENS, dtype=torch.int64)
    padded[2, 100:] = 0
    with Sent() as sent:
        packing = Packing.of(full, config).to(META)
    assert sent.largest == 0
    assert packing.is_full
    assert {tensor.device for tensor in (packing.mask_BL, packing.flat_T, packing.index_BL)} == {META}
    for mask in (full, padded):
        packing = Packing.of(mask, config)
        assert packing.flat_T.tolist() == [number for number, is_text in enumerate(mask.flatten().tolist()) if is_text]
        assert packing.index_BL[mask.bool()].tolist() == list(range(int(mask.sum())))
        assert packing.is_full == bool(mask.all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_host_does_not_wait() -> None:
    device = torch.device("cuda")
    large = torch.ones(1 << 20)
    send(large, device)
    torch.cuda.synchronize()
    torch.cuda._sleep(1 << 31)
    send(large, device)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
