"""The static decoding loop gives the tokens of `generate`, and memory that rows share is held once. Float32, on the CPU."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.integration import training_attention
from pal_audio.integration.attention import folded_sdpa
from pal_audio.integration.decode_attention import Keys, one_query_attention
from pal_audio.integration.shared_attention import rows_at_once, shared_attention, shared_mask
from pal_audio.model.decoder import Decoder
from pal_audio.model.decoding import greedy, why_plain
from tests.kernels import kernel_module
from tests.model.test_invariants import ARMS, CLIPS, CONVERSATIONS
from tests.tiny import EAGER_ONLY, FAMILIES, batch, message, tiny_model

QUESTIONS = ("a bell", "how many sounds come before the siren?", "what sound is this?")


def mixed_batch(processor: Any) -> Any:
    """No, one and two clips of several lengths, padded on the left."""
    return batch(processor, [conversation for conversation, _ in CONVERSATIONS])


def generated(model: Any, inputs: Any, num: int, **options: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=num, do_sample=False, **options)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_tokens_equal_those_of_generate(family: str, arm: str) -> None:
    model, processor = tiny_model(family, arm)
    assert (why_plain(model) is None) == (family not in EAGER_ONLY), "soft-cap and sinks need the eager kernel"
    inputs = mixed_batch(processor)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=12), generated(model, inputs, 12))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_text_alone_equals_generate(family: str) -> None:
    model, processor = tiny_model(family, "plits")
    inputs = batch(processor, [message(question=question) for question in QUESTIONS])
    assert torch.equal(greedy(model, **inputs, max_new_tokens=12), generated(model, inputs, 12))


@pytest.mark.parametrize("arm", ARMS)
def test_rows_end_at_different_times(arm: str) -> None:
    model, processor = tiny_model("llama", arm)
    inputs = mixed_batch(processor)
    free = generated(model, inputs, 30, eos_token_id=-1)[:, inputs["input_ids"].shape[1] :]
    ends = sorted({int(free[0, 2]), int(free[1, 9]), int(free[2, 5]), int(free[3, 7])})
    expected = generated(model, inputs, 30, eos_token_id=ends, pad_token_id=0)
    assert expected.shape[1] < inputs["input_ids"].shape[1] + 30
    assert torch.equal(greedy(model, **inputs, max_new_tokens=30, eos_token_id=ends, pad_token_id=0), expected)
    one = generated(model, inputs, 30, eos_token_id=ends[0], pad_token_id=0)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=30, eos_token_id=ends[0], pad_token_id=0), one)
    unending = greedy(model, **inputs, max_new_tokens=30, eos_token_id=[])
    assert torch.equal(unending[:, inputs["input_ids"].shape[1] :], free)


def test_audio_ids_inside_the_vocabulary_are_never_an_answer() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = mixed_batch(processor)
    model.resize_token_embeddings(max(model.config.audio_ids) + 1)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[list(model.config.audio_ids)] = 50 * head[:2].abs()
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6), generated(model, inputs, 6))


def test_the_host_stops_soon_after_the_last_row_has_ended() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = mixed_batch(processor)
    decoder, steps = Decoder(model), []
    ends = greedy(model, **inputs, max_new_tokens=1, decoder=decoder)[:, -1].tolist()
    decoder.start(inputs["input_ids"], inputs["attention_mask"], 60, ends, 0, **_audio(inputs))
    run = decoder.run
    decoder.run = lambda: (steps.append(1), run())
    decoder.run_until_end(59, may_end=True)
    assert len(steps) == 0, "every row ended with its first token"


def _audio(inputs: Any) -> dict[str, Any]:
    return {name: inputs[name] for name in ("input_features", "audio_num_samples")}


@pytest.mark.parametrize("arm", ARMS)
def test_a_decoder_serves_answers_of_any_shape_one_after_another(arm: str) -> None:
    model, processor = tiny_model("llama", arm)
    decoder = Decoder(model)
    conversations = [
        [message(CLIPS[0]), message(CLIPS[1])], [message(CLIPS[1]), message(CLIPS[0])], [message(), message(question="a bell")],
        [message(CLIPS[2], CLIPS[0])],
    ]  # fmt: skip
    for num in (1, 7, 40):
        for rows in conversations:
            inputs = batch(processor, rows)
            assert torch.equal(greedy(model, **inputs, max_new_tokens=num, decoder=decoder), generated(model, inputs, num))


def test_the_warm_up_touches_no_slot_of_the_prompt() -> None:
    """Prompts around a multiple of the slots that are made at once."""
    model, processor = tiny_model("llama", "lal")
    for words in range(20, 34):
        inputs = batch(processor, [message(CLIPS[0], question="a " * words)])
        for num in (2, 3):
            assert torch.equal(greedy(model, **inputs, max_new_tokens=num), generated(model, inputs, num))


def test_a_step_is_prepared_again_for_another_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph holds addresses: those of the memory, while masks and tables of a prompt are copied to where it reads them."""
    model, processor = tiny_model("llama", "lal", positions="zero")
    decoder, prepared = Decoder(model, kernel=False), []
    prepare = decoder._prepare
    monkeypatch.setattr(decoder, "_prepare", lambda: (prepared.append(1), prepare()))
    # Values of the memory and, as `attach` was told, keys that it remembered.
    first = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(first["input_features"], first["audio_num_samples"])
    attached = model.attach(memory, first["input_ids"], first["attention_mask"])
    for question, times in (("what sound is this?", 1), ("what sound is that", 1)):
        inputs = batch(processor, [message(CLIPS[1], question=question)])
        again = replace(attached, prompt_BL=inputs["input_ids"])
        again.placement = model.attach(memory, inputs["input_ids"]).placement
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        got = greedy(model, **text, audio_memory=again, max_new_tokens=5, decoder=decoder)
        assert torch.equal(got, generated(model, inputs, 5))
        assert len(prepared) == times
    other = batch(processor, [message(CLIPS[2])])
    assert torch.equal(greedy(model, **other, max_new_tokens=5, decoder=decoder), generated(model, other, 5))
    assert len(prepared) == 2


@pytest.mark.parametrize("arm", ["lal", "pal", "flamingo"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_step_is_one_graph(family: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled has no break, is compiled once for answers of equal shapes, and gives the same tokens."""
    model, processor = tiny_model(family, arm)
    inputs = mixed_batch(processor)
    graphs = []

    def backend(module: Any, example_inputs: Any) -> Any:
        graphs.append(module)
        return module

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, backend=backend, **options))
    decoder = Decoder(model, compile=True)
    expected = generated(model, inputs, 8)
    for _ in range(2):
        assert torch.equal(greedy(model, **inputs, max_new_tokens=8, decoder=decoder), expected)
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.parametrize(("setting", "value"), [("repetition_penalty", 1.3), ("no_repeat_ngram_size", 2), ("min_new_tokens", 4)])
def test_what_a_static_step_cannot_do_is_left_to_generate(setting: str, value: Any) -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = mixed_batch(processor)
    setattr(model.generation_config, setting, value)
    assert why_plain(model) == f"generation_config.{setting}"
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6), generated(model, inputs, 6))


def test_the_eager_kernel_is_left_to_generate() -> None:
    """Soft-capped families and those with sinks run on it."""
    model, processor = tiny_model("llama", "lal")
    inputs = mixed_batch(processor)
    expected = greedy(model, **inputs, max_new_tokens=6)
    model.set_attn_implementation("eager")
    assert why_plain(model) == "the pal_eager kernel"
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_misuse_is_told(family: str) -> None:
    """By the static step and by `generate` alike."""
    model, processor = tiny_model(family, "lal")
    assert (why_plain(model) is None) == (family == "llama")
    inputs = batch(processor, [message(CLIPS[0])])
    other, _ = tiny_model(family, "lal", seed=1)
    with pytest.raises(PalError, match="decoder: made for another model"):
        greedy(model, **inputs, max_new_tokens=3, decoder=Decoder(other))
    for option in ("do_sample", "repetition_penalty", "past_key_values"):
        with pytest.raises(PalError, match=f"greedy: no option '{option}'"):
            greedy(model, **inputs, max_new_tokens=3, **{option: 1})
    inputs = batch(processor, [message(CLIPS[0]), message()], padding_side="right")
    with pytest.raises(PalError, match="padded on the left"):
        greedy(model, **inputs, max_new_tokens=3)
    with pytest.raises(PalError, match="max_new_tokens: 0"):
        greedy(model, **inputs, max_new_tokens=0)


@pytest.mark.parametrize("arm", ["lal", "flamingo"])
def test_lost_audio_is_an_error(arm: str) -> None:
    """The guard of the plain path holds for a step too."""
    model, processor = tiny_model("llama", arm)
    inputs = batch(processor, [message(CLIPS[0])])
    decoder = Decoder(model)
    original = decoder.step

    def deaf() -> None:
        original()
        decoder.plan.consumed.discard(1)
        decoder.plan.entered.clear()

    decoder.step = deaf  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="audio did not reach"):
        greedy(model, **inputs, max_new_tokens=3, decoder=decoder)


def test_a_layer_that_does_not_attend_through_us_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(CLIPS[0])])
    monkeypatch.setattr(model, "hook_attention", lambda: model.language_model.set_attn_implementation("sdpa"))
    with pytest.raises(RuntimeError, match="4 of 4 layers did not attend through PAL"):
        greedy(model, **inputs, max_new_tokens=3)


# ---- one memory for many questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "olmo2"])
def test_a_shared_memory_serves_every_row_as_its_own_would(family: str, arm: str, positions: str) -> None:
    model, processor = tiny_model(family, arm, positions=positions)
    for clips in ([CLIPS[1]], [CLIPS[2], CLIPS[0]], [CLIPS[0], CLIPS[0] / 2]):
        one = batch(processor, [message(*clips)])
        memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
        inputs = batch(processor, [message(*clips, question=question) for question in QUESTIONS])
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        shared = {**text, "audio_memory": memory.share(3)}
        mask = inputs["attention_mask"].bool()
        with torch.no_grad():
            torch.testing.assert_close(model(**shared).logits[mask], model(**inputs).logits[mask])
            attached = model.attach(memory.share(3), **text)
        for keys, values in attached.remembered.values():
            assert keys.shape[0] == values.shape[0] == 1
        for keys, values in attached.block_memory.values():
            assert keys.shape[0] == values.shape[0] == 1
        expected = generated(model, inputs, 8)
        assert torch.equal(generated(model, shared, 8), expected)
        assert torch.equal(greedy(model, **shared, max_new_tokens=8), expected)
        assert torch.equal(generated(model, shared, 3, num_beams=2), generated(model, inputs, 3, num_beams=2))
        model.set_attn_implementation("eager")
        assert torch.equal(generated(model, shared, 8), expected)
        model.set_attn_implementation("sdpa")


def test_values_of_one_clip_are_the_memory_itself() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    attached = model.attach(memory.share(5), inputs["input_ids"].repeat(5, 1))
    assert attached.remembered[0][1].data_ptr() == memory.values[0][0].data_ptr()
    assert memory.share(5).num_bytes == memory.num_bytes


def test_prompts_that_differ_before_the_marker_get_keys_of_their_own() -> None:
    model, processor = tiny_model("llama", "lal")
    one = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
    inputs = batch(processor, [message(CLIPS[1]), message(CLIPS[1], system=None)])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert model.attach(memory.share(2), **text).remembered[0][0].shape[0] == 2
    expected = generated(model, inputs, 8)
    assert torch.equal(greedy(model, **text, audio_memory=memory.share(2), max_new_tokens=8), expected)
    assert torch.equal(generated(model, text | {"audio_memory": memory.share(2)}, 8), expected)


def test_a_new_clip_behind_a_shared_one() -> None:
    """A second turn on a kept cache equals the whole text anew."""
    model, processor = tiny_model("llama", "lal")
    one = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
    ids = one["input_ids"].repeat(2, 1)
    with torch.no_grad():
        first = model(ids, audio_memory=memory.share(2), use_cache=True)
        behind = memory.select(torch.tensor([0, 0]))
        second = model(ids, audio_memory=behind, past_key_values=first.past_key_values).logits
        whole = torch.cat([ids, ids], dim=1)
        at_once = model(whole, audio_memory=memory.share(4)).logits
        with pytest.raises(PalError, match="with `select` instead"):
            model(ids, audio_memory=memory.share(2), past_key_values=model(ids, audio_memory=behind).past_key_values)
    torch.testing.assert_close(second, at_once[:, ids.shape[1] :])


def test_a_shared_memory_is_not_concatenated() -> None:
    model, processor = tiny_model("llama", "lal")
    one = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
    with pytest.raises(PalError, match="concatenate first, then share"):
        memory.concatenate([memory, memory.share(2)])
    with pytest.raises(PalError, match="the text holds 2 audio markers"):
        model.attach(memory.share(3), one["input_ids"].repeat(2, 1))


def test_padding_that_is_fed_alone_spoils_nothing() -> None:
    """A piece of one column of padding sees no key at all: what stands there is finite, as where rows hold audio of their own."""
    model, processor = tiny_model("llama", "lal")
    one = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
    questions = [message(CLIPS[1], question=text) for text in ("a bell", "how many sounds come before the siren?")]
    inputs = batch(processor, questions)
    asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert (asked["attention_mask"] == 0).sum() > 3
    expected = model.generate(**asked, audio_memory=memory.share(2), max_new_tokens=5, do_sample=False)
    in_pieces = model.generate(**asked, audio_memory=memory.share(2), max_new_tokens=5, do_sample=False, prefill_chunk_size=1)
    assert torch.equal(in_pieces, expected)


# ---- the attention of a step ----------------------------------------------------------------------------------------


def _heads(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, None), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("held", [1, 3])
def test_one_query_over_parts_equals_sdpa_over_joined_keys(held: int, dtype: torch.dtype, tolerance: float | None) -> None:
    query = _heads(3, 8, 16, dtype=dtype)
    audio = [_heads(held, 2, 11, 16, dtype=dtype) for _ in range(2)]
    text = [_heads(3, 2, 5, 16, dtype=dtype) for _ in range(2)]
    hears, seen = torch.rand(3, 11) > 0.3, torch.rand(3, 5) > 0.3
    seen[:, 0] = True
    output = one_query_attention(query, Keys(*text, seen), Keys(*audio, hears), 0.3)
    keys, values = (
        torch.cat([a.expand(3, -1, -1, -1), t], dim=2).repeat_interleave(4, 1) for a, t in zip(audio, text, strict=True)
    )
    mask = torch.cat([hears, seen], dim=1)[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, None].float(), keys.float(), values.float(), attn_mask=mask, scale=0.3
    )
    torch.testing.assert_close(output.float(), expected[:, :, 0], **({} if tolerance is None else {"atol": tolerance, "rtol": 0}))


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_shared_attention_equals_sdpa_over_joined_keys(at_once: int) -> None:
    query, audio = _heads(5, 8, 4, 16).requires_grad_(), [_heads(1, 2, 11, 16).requires_grad_() for _ in range(2)]
    text = [_heads(5, 2, 6, 16).requires_grad_() for _ in range(2)]
    hears, seen = torch.rand(5, 4, 11) > 0.5, torch.rand(5, 4, 6) > 0.5
    seen[..., 0] = True
    hears[0, :2] = False
    hears[2, 0] = seen[2, 0] = False
    mask = shared_mask(seen, hears, at_once)
    assert mask.shape == (-(-5 // at_once), 1, at_once * 4, 11 + at_once * 6)
    output = shared_attention(partial(folded_sdpa, mask=mask), query, (text[0], text[1]), (audio[0], audio[1]), at_once)
    keys, values = (
        torch.cat([a.expand(5, -1, -1, -1), t], dim=2).repeat_interleave(4, 1) for a, t in zip(audio, text, strict=True)
    )
    joined = torch.cat([hears, seen], dim=-1)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=joined)
    assert output[2, :, 0].isfinite().all(), "a query that sees nothing, which is padding"
    sees = torch.ones(5, 1, 4, 1, dtype=torch.bool)
    sees[2, 0, 0] = False
    output, expected = (torch.where(sees, one, 0.0) for one in (output, expected))
    torch.testing.assert_close(output, expected)
    cotangent = torch.randn_like(output)
    leaves = [query, *audio, *text]
    for ours, theirs in zip(*(torch.autograd.grad(one, leaves, cotangent) for one in (output, expected)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_copies_of_shared_audio_are_few() -> None:
    """Rows behind one copy make at most a quarter of it, so that all copies are at most eight times the text, or one."""
    assert rows_at_once(64, 64, 1500) == 5
    assert rows_at_once(3, 64, 540_000) == 3
    assert rows_at_once(64, 128, 100) == 1
    for rows, num_text, num_audio in ((64, 64, 1500), (1000, 8, 300), (7, 40, 170)):
        copies = -(-rows // rows_at_once(rows, num_text, num_audio))
        assert copies == 1 or (copies - 1) * num_audio <= 8 * rows * num_text


def test_a_decoder_that_cannot_have_its_kernel_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama", "lal")
    for has_triton, missing in ((False, "needs Triton, which is not installed"), (True, "on a GPU, but the model is on cpu")):
        monkeypatch.setattr(training_attention, "HAS_TRITON", has_triton)
        monkeypatch.setattr(training_attention, "IS_INTERPRETED", False)
        with pytest.raises(PalError, match=rf"Decoder\(kernel=True\).*{missing}"):
            Decoder(model, kernel=True)


@pytest.fixture
def kernel() -> Any:
    return kernel_module("decode_kernel")


@pytest.mark.parametrize("held", [1, 3])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize(("num_audio", "size"), [(130, 32), (1500, 64)])
def test_the_kernel_equals_the_matrix_products(kernel: Any, num_audio: int, size: int, rotated: bool, held: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype, tolerance in ((torch.float32, 5e-6), *([(torch.bfloat16, 2e-2)] if device == "cuda" else [])):
        query = _heads(3, 8, size, dtype=dtype).to(device)
        audio, text = (
            [_heads(rows, 2, num, size, dtype=dtype).to(device) for _ in range(2)] for rows, num in ((held, num_audio), (3, 70))
        )
        hears, seen = torch.rand(3, num_audio, device=device) > 0.3, torch.rand(3, 70, device=device) > 0.3
        seen[:, 0], hears[0] = True, False
        angles = 6 * torch.rand(held, num_audio, size // 2, device=device)
        cos, sin = (table.repeat(1, 1, 2).to(dtype) for table in (angles.cos(), angles.sin()))
        one, two = audio[0].chunk(2, dim=-1)
        turned = audio[0] if rotated else audio[0] * cos[:, None] + torch.cat([-two, one], dim=-1) * sin[:, None]
        kept = Keys(*audio, hears, None if rotated else (cos, sin))
        expected = one_query_attention(query, Keys(*text, seen), Keys(turned, audio[1], hears), 0.2)
        close = {"atol": tolerance, "rtol": 0}
        torch.testing.assert_close(kernel.one_query_attention(query, Keys(*text, seen), kept, 0.2), expected, **close)
        alone = kernel.one_query_attention(query, Keys(*text, seen), None, 0.2)
        torch.testing.assert_close(alone, one_query_attention(query, Keys(*text, seen), None, 0.2), **close)


@pytest.mark.parametrize("num_pieces", [1, 9, 16, 17, 40])
@pytest.mark.parametrize(("num_queries", "size"), [(1, 64), (33, 32), (21, 256), (20, 48)])
def test_pieces_are_combined_as_one_softmax(kernel: Any, num_queries: int, size: int, num_pieces: int) -> None:
    """Also pieces that saw no key, and numbers of queries and pieces that fill no block."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    outputs = torch.randn(num_queries, num_pieces, size, device=device)
    sums = 9 * torch.randn(num_queries, num_pieces, device=device)
    sums[1:, 1::3] = -torch.inf
    result = torch.full((num_queries + 1, size), 7.0, device=device)
    kernel.combine(outputs, sums, result[:-1])
    expected = (sums.softmax(-1)[..., None] * outputs).sum(1)
    torch.testing.assert_close(result[:-1], expected, atol=1e-5, rtol=0)
    assert bool((result[-1] == 7.0).all()), "nothing is written behind the last query"


@pytest.mark.parametrize("family", ["llama", "smollm3", "phi3"])
def test_a_step_by_the_kernel_gives_the_same_tokens(kernel: Any, family: str) -> None:
    """Un-rotated keys of a memory, layers without rotary, and a family whose rotation the kernel does not know."""
    model, processor = tiny_model(family, "pal", llm={"head_dim": 32})
    if torch.cuda.is_available():
        model = model.cuda()
    own = batch(processor, [message(CLIPS[0]), message(CLIPS[2], question="a bell")])
    one = batch(processor, [message(CLIPS[1])])
    memory = model.encode_audio(one["input_features"], one["audio_num_samples"])
    rows = batch(processor, [message(CLIPS[1], question=question) for question in QUESTIONS])
    shared = {name: rows[name] for name in ("input_ids", "attention_mask")} | {"audio_memory": memory.share(3)}
    decoder = Decoder(model, compile=False, kernel=True)
    for inputs in (own, shared):
        assert torch.equal(greedy(model, **inputs, max_new_tokens=4, decoder=decoder), generated(model, inputs, 4))
    kept = [part.tables is not None for part in decoder.plan.audio.values()]
    assert kept == {"llama": [True] * 4, "smollm3": [True, False] * 2, "phi3": [False] * 4}[family]
    if family != "phi3":
        assert decoder.plan.audio[0].keys.data_ptr() == memory.keys[0][0].data_ptr(), "read where it lies"


@pytest.mark.parametrize("arm", ARMS)
def test_audio_that_is_not_remembered_serves_beams_and_more_as_well(arm: str) -> None:
    model, processor = tiny_model("llama", arm)
    inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[1])])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for options in ({}, {"num_beams": 3}):
        lazy = model.attach(memory, **text, remember=False)
        assert not lazy.remembered
        assert torch.equal(generated(model, text | {"audio_memory": lazy}, 5, **options), generated(model, inputs, 5, **options))
