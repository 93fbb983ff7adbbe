"""Packed equals unpacked: logits, loss and gradients, for every family and arm; and rows never see each other."""

from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pal_audio.errors import PalError
from pal_audio.integration.key_values import find_layers
from tests.model.test_invariants import ARMS, CLIPS, MATRIX
from tests.tiny import batch, message, tiny_model

ANSWER = [{"role": "assistant", "content": "a dog barks twice"}]
# No, one and two clips, texts of different lengths; one row is longer than every window.
CONVERSATIONS = [
    message(CLIPS[0]) + ANSWER,
    message(CLIPS[2], CLIPS[1], question="a dog barks twice") + ANSWER,
    [*message(CLIPS[1], system=None), {"role": "assistant", "content": "a bell"}],
    message(question="how many sounds come before the siren?") + ANSWER,
]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes that operations made and something still holds, wherever it does."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return output

    def now(self) -> int:
        return sum(nbytes for reference, nbytes in self.made.values() if not reference.expired())


def training_batch(processor: Any, conversations: list[Any]) -> Any:
    return batch(processor, conversations, return_labels=True)


def check_packed(model: Any, processor: Any, checkpointing: bool) -> None:
    """Logits, loss and every gradient."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = training_batch(processor, CONVERSATIONS)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    results = []
    for packed in (False, True):
        model.zero_grad()
        outputs = model(**inputs, packed=packed, use_cache=False)
        outputs.loss.backward()
        results.append((outputs, {name: None if p.grad is None else p.grad.clone() for name, p in trained.items()}))
    (plain, expected), (packed_out, found) = results
    torch.testing.assert_close(packed_out.loss, plain.loss)
    supervised = inputs["labels"][:, 1:] >= 0
    torch.testing.assert_close(packed_out.logits[0], plain.logits[:, :-1][supervised])
    assert {name for name, grad in found.items() if grad is None} == {name for name, grad in expected.items() if grad is None}
    for name, grad in expected.items():
        if grad is not None:
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("family", "arm"), MATRIX)
def test_packed_equals_unpacked(family: str, arm: str, checkpointing: bool) -> None:
    check_packed(*tiny_model(family, arm), checkpointing)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("positions", ["span", "zero"])
def test_packed_logits_come_back_in_their_rows(arm: str, positions: str) -> None:
    model, processor = tiny_model("llama", arm, positions=positions)
    inputs = training_batch(processor, CONVERSATIONS)
    del inputs["labels"]
    with torch.no_grad():
        plain, packed = model(**inputs).logits, model(**inputs, packed=True).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(packed[mask], plain[mask])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
@pytest.mark.parametrize("arm", ARMS)
def test_rows_do_not_see_each_other(family: str, arm: str) -> None:
    """Another neighbour, to the left and with other clips, changes no bit that float32 shows."""
    model, processor = tiny_model(family, arm)
    ours, others = CONVERSATIONS[1], [CONVERSATIONS[0], CONVERSATIONS[2]]
    rows = []
    for other in others:
        inputs = training_batch(processor, [other, ours])
        mask = inputs.pop("attention_mask")
        inputs.pop("labels")
        with torch.no_grad():
            rows.append(model(**inputs, attention_mask=mask, packed=True).logits[1, : int(mask[1].sum())])
    torch.testing.assert_close(rows[0], rows[1])


def test_text_alone_is_packed_too() -> None:
    model, processor = tiny_model("gemma3_text", "lal")
    inputs = training_batch(processor, [CONVERSATIONS[3], message(system=None) + ANSWER])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, packed=True).loss, model(**inputs).loss)


def test_the_number_of_items_makes_parts_sum_to_the_whole() -> None:
    model, processor = tiny_model("llama", "pal")
    whole = training_batch(processor, CONVERSATIONS)
    num_items = int((whole["labels"][:, 1:] >= 0).sum())
    with torch.no_grad():
        expected = model(**whole, packed=True).loss
        parts = [training_batch(processor, CONVERSATIONS[:1]), training_batch(processor, CONVERSATIONS[1:])]
        found = sum(model(**part, packed=True, num_items_in_batch=num_items).loss for part in parts)
    torch.testing.assert_close(found, expected)


def test_what_cannot_be_packed_is_refused() -> None:
    model, processor = tiny_model("llama", "pal")
    left = batch(processor, CONVERSATIONS[:3:2], padding_side="left")
    with pytest.raises(PalError, match="padded on the right"):
        model(**left, packed=True)
    inputs = training_batch(processor, CONVERSATIONS[:2])
    cache = model(**inputs, use_cache=True).past_key_values
    with pytest.raises(PalError, match="no packing with a text cache"):
        model(input_ids=torch.ones(2, 1, dtype=torch.int64), past_key_values=cache, packed=True)


def test_a_layer_of_an_unknown_kind_is_refused() -> None:
    model, processor = tiny_model("qwen2", "plits")
    model.language_model.config.layer_types[1] = "chunked_attention"
    with pytest.raises(PalError, match=r"'chunked_attention' .qwen2. are not known to packing"):
        model(**training_batch(processor, CONVERSATIONS[:2]), packed=True)


def test_an_attention_that_packing_cannot_enter_is_an_error() -> None:
    model, processor = tiny_model("llama", "plits")
    inputs = training_batch(processor, CONVERSATIONS[:2])
    model(**inputs, packed=True)
    model.language_model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="4 of 4 layers did not attend through PAL"):
        model(**inputs, packed=True)


def test_bf16_packed_is_near_unpacked() -> None:
    """bfloat16 rounds sums of other orders: within 6% of the logits' spread, as batches against singles."""
    model, processor = tiny_model("llama", "pal")
    model.to(torch.bfloat16)
    inputs = training_batch(processor, CONVERSATIONS)
    del inputs["labels"]
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        plain, packed = model(**inputs).logits[mask].float(), model(**inputs, packed=True).logits[mask].float()
    assert float((packed - plain).abs().max()) < 0.06 * float(plain.std())


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("arm", ["lal", "pal"])
def test_recomputed_audio_keeps_the_gradients_and_fewer_bytes(arm: str, called: bool) -> None:
    """`light` computes no matrix product twice, `full` those of audio too and keeps less; also where norms are called."""
    model, processor = tiny_model("llama", arm, connector={"type": "mlp", "stride": 1})
    if called:
        for layer in find_layers(model.language_model):
            layer.input_layernorm.register_forward_hook(lambda *_: None)  # type: ignore[operator, union-attr]
    model.encoders.requires_grad_(False)
    inputs = training_batch(processor, CONVERSATIONS)
    results = {}
    for recompute in ("none", "light", "full"):
        model.recompute_audio = recompute
        model.zero_grad()
        with FlopCounterMode(display=False) as counter, LiveBytes() as live:
            loss = model(**inputs, use_cache=False).loss
            num_bytes = live.now()
            loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results[recompute] = (loss.detach(), gradients, num_bytes, counter.get_total_flops())
    loss, expected, plain_bytes, plain_flops = results["none"]
    for recompute in ("light", "full"):
        again, found, _, _ = results[recompute]
        assert torch.equal(loss, again)
        assert expected.keys() == found.keys()
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad)
    (_, _, light_bytes, light_flops), (_, _, full_bytes, full_flops) = results["light"], results["full"]
    assert full_bytes < light_bytes < (0.95 if called else 1) * plain_bytes
    assert full_bytes < 0.9 * plain_bytes
    assert light_flops == plain_flops < full_flops
