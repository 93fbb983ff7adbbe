"""What must always hold, for every family and arm: see docs/design.md. Float32, default tolerances."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoProcessor

from pal_audio.model import load
from tests.reference import reference_logits
from tests.tiny import EAGER_ONLY, FAMILIES, batch, message, noise, tiny_model

ARMS = ("plits", "lal", "pal", "flamingo")
# Clips of three lengths; the windows are 1 s long, so the last one has three.
CLIPS = [noise(0.4, 1), noise(1.3, 2), noise(2.6, 3)]
MATRIX = [(family, arm) for family in FAMILIES for arm in ARMS]


def clip_tokens(model: Any, processor: Any, clips: list[np.ndarray]) -> list[list[torch.Tensor]]:
    """For each stream, the audio tokens of each clip, encoded one by one."""
    per_clip = []
    for clip in clips:
        inputs = processor.collate_clips([processor.clip(clip, 16_000)])
        per_clip.append([tokens[0, : int(n[0])] for tokens, n in model.get_audio_features(**inputs)])
    return [list(stream) for stream in zip(*per_clip, strict=True)]


def valid_logits(outputs: Any, inputs: Any) -> list[torch.Tensor]:
    return [row[mask.bool()] for row, mask in zip(outputs.logits, inputs["attention_mask"], strict=True)]


CONVERSATIONS = [
    (message(CLIPS[0]), [CLIPS[0]]),
    (message(CLIPS[2], CLIPS[1], question="a dog barks twice"), [CLIPS[2], CLIPS[1]]),
    (message(CLIPS[1], system=None), [CLIPS[1]]),
    (message(question="how many sounds come before the siren?"), []),
]


def check_reference(model: Any, processor: Any) -> None:
    """Invariants 2, 3 and 5: a mixed batch of no, one and two clips equals the eager reference row by row, however padded."""
    for side in ("left", "right"):
        inputs = batch(processor, [conversation for conversation, _ in CONVERSATIONS], padding_side=side)
        with torch.no_grad():
            rows = valid_logits(model(**inputs), inputs)
        for row, (conversation, clips) in zip(rows, CONVERSATIONS, strict=True):
            ids = batch(processor, [conversation])["input_ids"][0].tolist()
            expected = reference_logits(
                model, ids, clip_tokens(model, processor, clips) if clips else [[] for _ in model.streams]
            )
            torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize(("family", "arm"), MATRIX)
def test_equals_reference_in_a_batch_with_either_padding(family: str, arm: str, positions: str) -> None:
    check_reference(*tiny_model(family, arm, positions=positions))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": [0, 3]},
        {"layers": "from:2"},
        {"layers": "every:2", "projector": "shared"},
        {"projector": "low_rank", "rank": 2},
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_lal_options_equal_reference(family: str, options: dict[str, Any]) -> None:
    model, processor = tiny_model(family, "pal", lal=options, summary_sees_audio=False)
    conversation, clips = CONVERSATIONS[1]
    inputs = batch(processor, [conversation])
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    expected = reference_logits(model, inputs["input_ids"][0].tolist(), clip_tokens(model, processor, clips))
    torch.testing.assert_close(logits, expected)


def check_live_path(model: Any, processor: Any) -> None:
    """The live path (keys and values inside each layer) and the memory path give the same logits; live ones have gradients."""
    inputs = batch(processor, [CONVERSATIONS[0][0], CONVERSATIONS[1][0]])
    live = model(**inputs)
    with torch.no_grad():
        remembered = model(**inputs)
    torch.testing.assert_close(live.logits, remembered.logits)
    live.logits.float().pow(2).mean().backward()
    silent = [
        name for name, p in model.named_parameters() if name.startswith(("streams", "marker", "encoders")) and p.grad is None
    ]
    assert not silent


@pytest.mark.parametrize(("family", "arm"), MATRIX)
def test_gradients_of_the_live_path_equal_autograd_of_the_same_function(family: str, arm: str) -> None:
    check_live_path(*tiny_model(family, arm))


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_audio_is_the_bare_llm_exactly(family: str) -> None:
    """Invariant 1."""
    model, processor = tiny_model(family, "pal")
    inputs = batch(processor, [message(), message(question="a bell")], padding_side="right")
    with torch.no_grad():
        ours = model(**inputs).logits
        model.language_model.set_attn_implementation("eager" if family in EAGER_ONLY else "sdpa")
        bare = model.language_model(**inputs).logits
    assert torch.equal(ours, bare)


def test_pal_without_slots_is_lal() -> None:
    """Invariant 4, first half: same weights, k = 0."""
    pal, _ = tiny_model("llama", "pal")
    lal, lal_processor = tiny_model("llama", "lal")
    lal.load_state_dict({name: tensor for name, tensor in pal.state_dict().items() if not name.startswith("streams.1.")})
    inputs = batch(lal_processor, [CONVERSATIONS[1][0]])
    with torch.no_grad():
        memory = pal.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
        memory.clips.num_slots_C = torch.zeros_like(memory.clips.num_slots_C)
        ours = pal(inputs["input_ids"], audio_memory=memory).logits
        torch.testing.assert_close(ours, lal(**inputs).logits)


def test_pal_without_layers_is_plits_of_the_summary() -> None:
    """Invariant 4, second half. The LAL stream still stretches the span, so positions are compared under `zero`."""
    pal, processor = tiny_model("llama", "pal", lal={"layers": []}, positions="zero")
    plits, _ = tiny_model("llama", "plits", connector={"type": "pool", "num_tokens": 3}, positions="zero")
    state = {
        name.replace("streams.1.", "streams.0."): t for name, t in pal.state_dict().items() if not name.startswith("streams.0.")
    }
    plits.load_state_dict(state)
    inputs = batch(processor, [CONVERSATIONS[1][0]])
    with torch.no_grad():
        torch.testing.assert_close(pal(**inputs).logits, plits(**inputs).logits)


def check_generation(model: Any, processor: Any) -> None:
    """Invariant 5: greedy tokens with a dynamic, a static and no cache agree, in a left-padded batch and one by one."""
    conversations = [conversation for conversation, _ in CONVERSATIONS]
    inputs = batch(processor, conversations)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = model.generate(**inputs, **options)
    recomputed = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached, recomputed)
    assert torch.equal(cached, model.generate(**inputs, **options, cache_implementation="static"))
    width = inputs["input_ids"].shape[1]
    for row, conversation in enumerate(conversations):
        alone = batch(processor, [conversation])
        answer = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        assert torch.equal(answer, cached[row, width:])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_generation_cached_equals_recomputed(family: str, arm: str) -> None:
    check_generation(*tiny_model(family, arm))


@pytest.mark.parametrize("arm", ARMS)
def test_cached_logits_equal_recomputed_logits(arm: str) -> None:
    model, processor = tiny_model("gemma3_text", arm)
    inputs = batch(processor, [CONVERSATIONS[0][0], CONVERSATIONS[1][0]])
    options = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached = model.generate(**inputs, **options)
    recomputed = model.generate(**inputs, **options, use_cache=False)
    for one, other in zip(cached.logits, recomputed.logits, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "gpt2", "gpt_neox", "gpt_oss"])
def test_beams_returns_and_chunked_prefill(family: str, arm: str) -> None:
    model, processor = tiny_model(family, arm)
    conversations = [conversation for conversation, _ in CONVERSATIONS]
    inputs = batch(processor, conversations)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    together = model.generate(**inputs, **options, num_beams=3, num_return_sequences=2)
    width = inputs["input_ids"].shape[1]
    for row, conversation in enumerate(conversations):
        alone = batch(processor, [conversation])
        answers = model.generate(**alone, **options, num_beams=3, num_return_sequences=2, use_cache=False)
        assert torch.equal(answers[:, alone["input_ids"].shape[1] :], together[2 * row : 2 * row + 2, width:])
    chunked = model.generate(**inputs, **options, prefill_chunk_size=4)
    assert torch.equal(chunked, model.generate(**inputs, **options))
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=3, do_sample=True, num_return_sequences=2, repetition_penalty=1.2)
    assert sampled.shape[0] == 2 * len(conversations)


def test_positions_zero_does_not_know_order_but_the_time_code_does() -> None:
    """Invariant 6: with `zero`, permuting tokens changes nothing; swapping two windows of sound before the encoder does."""
    model, processor = tiny_model("llama", "lal", positions="zero")
    clip = noise(2.0, 5)
    inputs = batch(processor, [message(clip)])
    with torch.no_grad():
        live = model.encode(inputs["input_features"], inputs["audio_num_samples"])
        plain = model(
            inputs["input_ids"], audio_memory=model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
        ).logits
        order = torch.randperm(live.widths[0], generator=torch.Generator().manual_seed(0))
        original = live.inputs[0]
        live.inputs[0] = lambda layer: original(layer)[:, order]
        permuted = model(inputs["input_ids"], audio_memory=model.attach(live, inputs["input_ids"])).logits
        torch.testing.assert_close(plain, permuted)
        swapped = batch(processor, [message(np.concatenate([clip[16_000:], clip[:16_000]]))])
        assert (plain - model(**swapped).logits).abs().max() > 1e-3


def check_memory(model: Any, processor: Any) -> None:
    """Invariant 6: one memory, several questions and turns, the same logits as encoding again."""
    first = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(first["input_features"], first["audio_num_samples"])
    for question in ("a bell", "how many sounds come before the siren?"):
        inputs = batch(processor, [message(CLIPS[1], question=question, system=None)])
        with torch.no_grad():
            assert torch.equal(model(inputs["input_ids"], audio_memory=memory).logits, model(**inputs).logits)
    assert memory.num_clips == 1
    assert memory.num_bytes > 0


@pytest.mark.parametrize("arm", ARMS)
def test_memory_does_not_depend_on_the_prompt_and_serves_many(arm: str) -> None:
    check_memory(*tiny_model("qwen3", arm))


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2", "cohere2", "glm4", "qwen3_moe", "gpt_neox", "gpt2"])
def test_eager_inner_kernel_equals_sdpa(family: str, arm: str) -> None:
    model, processor = tiny_model(family, arm)
    inputs = batch(processor, [conversation for conversation, _ in CONVERSATIONS])
    with torch.no_grad():
        sdpa = valid_logits(model(**inputs), inputs)
        model.set_attn_implementation("eager")
        eager = valid_logits(model(**inputs), inputs)
        inputs.pop("input_features")
        text = batch(processor, [message()])
        ours = model(**text).logits
        model.language_model.set_attn_implementation("eager")
        torch.testing.assert_close(ours, model.language_model(**text).logits, rtol=0, atol=0)
    for one, other in zip(sdpa, eager, strict=True):
        torch.testing.assert_close(one, other)


def check_saved(model: Any, processor: Any, folder: Path) -> None:
    """Invariant 8, first half. The processor gives the same inputs after loading, too."""
    inputs = batch(processor, [conversation for conversation, _ in CONVERSATIONS])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again, processor_again = load(folder)
    inputs_again = batch(processor_again, [conversation for conversation, _ in CONVERSATIONS])
    assert torch.equal(inputs["input_ids"], inputs_again["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, again(**inputs_again).logits)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(("family", "arm"), MATRIX)
def test_save_and_load_give_the_same_logits(family: str, arm: str, tmp_path: Path) -> None:
    model, processor = tiny_model(family, arm, positions="zero")
    check_saved(model, processor, tmp_path)
    if family == "llama":
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(model)
        assert type(AutoProcessor.from_pretrained(tmp_path)) is type(processor)


@pytest.mark.parametrize("arm", ARMS)
def test_a_training_batch_without_audio_touches_every_part_and_changes_nothing(arm: str) -> None:
    """Invariant 10 on one process: zero gradients, no missing ones, the bare LLM's logits."""
    model, processor = tiny_model("llama", arm)
    model.language_model.requires_grad_(False)
    inputs = batch(processor, [message(), message(question="a bell")], padding_side="right")
    model.train()
    outputs = model(**inputs)
    with torch.no_grad():
        bare = model.eval()(**inputs).logits
    mask = inputs["attention_mask"].bool()
    torch.testing.assert_close(outputs.logits[mask], bare[mask])
    outputs.logits.sum().backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and not name.startswith("marker")}
    assert all(gradient is not None and not gradient.any() for gradient in trained.values())


@pytest.mark.parametrize(("family", "arm"), MATRIX)
def test_checkpointing_keeps_gradients(family: str, arm: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, processor = tiny_model(family, arm)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[2], CLIPS[1])], return_labels=False, padding_side="right")
        model(**inputs, use_cache=False).logits.float().pow(2).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
