"""Attention of a few queries over many frames equals plain multi-head attention, however it is computed."""

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pal_audio.connectors.queries import Attention, reads_directly

SIZE, HEADS, CLIPS, FRAMES = 24, 3, 3, 11
FEW, MANY = 5, 9


def plain(attention: Attention, queries_CAD: Tensor, memory_CTD: Tensor, mask_CT: Tensor | None) -> Tensor:
    """As the books have it: keys and values of every frame."""
    heads = attention.num_heads
    q, k, v = (
        rearrange(side, "c t (h d) -> c h t d", h=heads)
        for side in (attention.q_proj(attention.norm(queries_CAD)), *attention.kv_proj(memory_CTD).chunk(2, dim=-1))
    )
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask_CT is not None:
        scores = scores.masked_fill(~mask_CT[:, None, None], -torch.inf)
    return attention.out_proj(rearrange(scores.softmax(-1) @ v, "c h a d -> c a (h d)"))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_queries", [FEW, MANY])
def test_it_is_multi_head_attention(num_queries: int, masked: bool) -> None:
    assert reads_directly(FEW, HEADS, SIZE)
    assert not reads_directly(MANY, HEADS, SIZE)
    attention = Attention(SIZE, HEADS)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    queries_CAD = torch.randn(CLIPS, num_queries, SIZE, requires_grad=True)
    memory_CTD = torch.randn(CLIPS, FRAMES, SIZE, requires_grad=True)
    mask_CT = torch.arange(FRAMES) < torch.tensor([FRAMES, 1, 6])[:, None] if masked else None
    weight_CAD = torch.randn(CLIPS, num_queries, SIZE)
    inputs = {"queries": queries_CAD, "memory": memory_CTD, **dict(attention.named_parameters())}
    outputs, gradients = [], []
    for function in (attention, lambda *sides: plain(attention, *sides)):
        output_CAD = function(queries_CAD, memory_CTD, mask_CT)
        outputs.append(output_CAD)
        gradients.append(torch.autograd.grad((output_CAD * weight_CAD).sum(), list(inputs.values())))
    torch.testing.assert_close(outputs[0], outputs[1])
    for name, ours, theirs in zip(inputs, *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_few_queries_make_no_keys_and_values_of_frames() -> None:
    attention = Attention(SIZE, HEADS)
    counts = {}
    for num_frames in (100, 200):
        with FlopCounterMode(display=False) as counter:
            attention(torch.randn(1, FEW, SIZE), torch.randn(1, num_frames, SIZE), None)
        counts[num_frames] = counter.get_total_flops()
    assert counts[200] - counts[100] == 100 * 2 * 2 * HEADS * FEW * SIZE < 100 * 2 * 2 * SIZE * SIZE


@torch.no_grad()
def test_low_precision_keeps_its_type_and_comes_near() -> None:
    attention = Attention(SIZE, HEADS).to(torch.bfloat16)
    queries_CAD, memory_CTD = torch.randn(1, FEW, SIZE), torch.randn(1, FRAMES, SIZE)
    mask_CT = torch.arange(FRAMES)[None] < 7
    low = attention(queries_CAD.bfloat16(), memory_CTD.bfloat16(), mask_CT)
    assert low.dtype == torch.bfloat16
    exact = plain(attention.float(), queries_CAD.bfloat16().float(), memory_CTD.bfloat16().float(), mask_CT)
    assert (low.float() - exact).abs().max().item() < 0.03 * exact.abs().max().item() + 0.01


@torch.no_grad()
@pytest.mark.parametrize("num_queries", [FEW, MANY])
def test_a_clip_without_frames_spoils_nothing(num_queries: int) -> None:
    mask_CT = torch.arange(FRAMES) < torch.tensor([FRAMES, 0])[:, None]
    assert Attention(SIZE, HEADS)(torch.randn(2, num_queries, SIZE), torch.randn(2, FRAMES, SIZE), mask_CT).isfinite().all()
