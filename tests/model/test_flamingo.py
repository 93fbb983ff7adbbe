"""Flamingo-style blocks beyond the invariants' matrix: zero at the start, what text hears, guards, checkpointing, mixtures."""

from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from pal_audio.errors import PalError
from pal_audio.integration import FlamingoConfig
from pal_audio.integration.flamingo import FlamingoBlock
from pal_audio.model import PalForConditionalGeneration, PalProcessor, preset
from pal_audio.model.building import describe
from pal_audio.training.groups import GROUPS, parameter_groups
from tests.model.test_invariants import clip_tokens, valid_logits
from tests.reference import reference_logits
from tests.tiny import FAMILIES, RATE_HZ, TINY_ENCODER, batch, message, noise, perturb, tiny_mix, tiny_model

CLIPS = [noise(0.4, 1), noise(1.3, 2), noise(2.6, 3)]
GATES = ("attention_gate", "ffn_gate")


def fresh(family: str = "llama", **options: Any) -> tuple[PalForConditionalGeneration, PalProcessor]:
    """A model whose gates are where they start."""
    model, processor = tiny_model(family, "flamingo", **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(GATES):
                parameter.zero_()
    return model, processor


def mixed(streams: list[dict[str, Any]], **options: Any) -> tuple[PalForConditionalGeneration, PalProcessor]:
    return tiny_mix(
        {"encoders": {"ear": TINY_ENCODER}, "streams": [{"encoder": "ear", **stream} for stream in streams], **options}
    )


def assert_equals_reference(model: PalForConditionalGeneration, processor: PalProcessor) -> None:
    conversations = [(message(*CLIPS), CLIPS), (message(CLIPS[1], system=None), [CLIPS[1]]), (message(), [])]
    inputs = batch(processor, [conversation for conversation, _ in conversations])
    with torch.no_grad():
        rows = valid_logits(model(**inputs), inputs)
    for row, (conversation, clips) in zip(rows, conversations, strict=True):
        ids = batch(processor, [conversation])["input_ids"][0].tolist()
        expected = reference_logits(model, ids, clip_tokens(model, processor, clips) if clips else [[] for _ in model.streams])
        torch.testing.assert_close(row, expected)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("live", [False, True])
def test_a_fresh_model_is_the_bare_llm_exactly(family: str, live: bool) -> None:
    model, processor = fresh(family)
    inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[2], CLIPS[1])])
    ids = inputs["input_ids"]
    is_marker = ids == model.config.audio_token_id
    embeddings = model.get_input_embeddings()(ids.masked_fill(is_marker, 0))
    embeddings = torch.where(is_marker[..., None], model.marker, embeddings)
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.set_grad_enabled(live):
        ours = model(**inputs).logits
        bare = model.language_model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(ours[mask.bool()], bare[mask.bool()])


def test_gates_learn_first_and_then_everything() -> None:
    model, processor = fresh()
    inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[2], CLIPS[1])])
    blocks = {name: parameter for name, parameter in model.named_parameters() if ".blocks." in name}
    model(**inputs).logits.pow(2).mean().backward()
    assert {name.endswith(GATES) for name in blocks} == {True, False}
    assert all(bool(parameter.grad.any()) == name.endswith(GATES) for name, parameter in blocks.items())
    model.zero_grad()
    with torch.no_grad():
        for name, parameter in blocks.items():
            if name.endswith(GATES):
                parameter.fill_(0.1)
    model(**inputs).logits.pow(2).mean().backward()
    assert all(bool(parameter.grad.any()) for parameter in blocks.values())
    connector = [parameter.grad for name, parameter in model.named_parameters() if ".connector." in name]
    assert all(bool(grad.any()) for grad in connector)


def test_text_before_the_marker_is_the_bare_llms() -> None:
    """The feed-forward part of a block must not touch a token that sees no clip."""
    model, processor = tiny_model("llama", "flamingo", flamingo={"layers": "all"})
    inputs = batch(processor, [message(CLIPS[0])])
    marker = inputs["input_ids"][0].tolist().index(model.config.audio_token_id)
    with torch.no_grad():
        ours = model(**inputs).logits[0]
        bare = model.language_model(inputs["input_ids"][:, :marker]).logits[0]
        muted = model(inputs["input_ids"], audio_memory=model.encode_audio(torch.zeros_like(inputs["input_features"]),
                                                                            inputs["audio_num_samples"])).logits[0]  # fmt: skip
    torch.testing.assert_close(ours[:marker], bare)
    assert torch.equal(ours[: marker + 1], muted[: marker + 1])
    assert (ours[marker + 1 :] - muted[marker + 1 :]).abs().amax(1).min() > 1e-4


@pytest.mark.parametrize(
    "options", [{"layers": "all", "attends": "last"}, {"layers": [3], "num_heads": 2, "ffn_factor": 1}, {"layers": "from:2"}]
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_options_equal_reference(family: str, options: dict[str, Any]) -> None:
    assert_equals_reference(*tiny_model(family, "flamingo", flamingo=options))


def test_last_hears_less_than_all() -> None:
    """With two clips in a message, only the first one's sound is out of reach of the question."""
    model, processor = tiny_model("llama", "flamingo", flamingo={"layers": [0], "attends": "last"})
    inputs = batch(processor, [message(CLIPS[0], CLIPS[1])])
    markers = (inputs["input_ids"][0] == model.config.audio_token_id).nonzero()[:, 0].tolist()
    assert markers[1] == markers[0] + 1
    captured = []
    handle = model.streams[0].blocks["0"].register_forward_hook(lambda block, args, output: captured.append(args[3][0, 0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    num_first, num_second = model.encode(inputs["input_features"], inputs["audio_num_samples"]).clips.num_keys_SC[0].tolist()
    expected = torch.zeros_like(captured[0])
    expected[markers[1], :num_first] = True  # the second marker follows the first clip alone
    expected[markers[1] + 1 :, num_first : num_first + num_second] = True
    assert torch.equal(captured[0], expected)


CACHED = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


BLOCKS = {"type": "flamingo", "layers": "every:2"}
BESIDE_OTHERS = [
    {"connector": {"type": "mlp", "stride": 4}, "integration": BLOCKS},
    {"connector": {"type": "pool", "num_tokens": 2}, "integration": {"type": "plits"}},
    {"connector": {"type": "mlp", "stride": 8}, "integration": {"type": "lal", "layers": "from:1"}},
    {"connector": {"type": "mlp", "stride": 2}, "integration": BLOCKS | {"attends": "last", "layers": [2, 3]}},
]


def test_beside_other_streams_it_equals_the_reference_and_the_cache() -> None:
    model, processor = mixed(BESIDE_OTHERS)
    assert_equals_reference(model, processor)
    inputs = batch(processor, [message(*CLIPS), message(CLIPS[1], system=None), message()])
    cached = model.generate(**inputs, **CACHED, num_beams=2)
    assert torch.equal(cached, model.generate(**inputs, **CACHED, num_beams=2, use_cache=False))
    found = describe(model)["streams"]
    assert [stream["flamingo_layers"] for stream in found] == [[0, 2], [], [], [2, 3]]
    assert [stream["lal_layers"] for stream in found] == [[], [], [1, 2, 3], []]


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("summary_sees_audio", [True, False])
def test_new_clips_behind_a_kept_cache_beside_other_streams(positions: str, summary_sees_audio: bool) -> None:
    """Each turn's logits over one cache equal the eager reference over the whole text; two clips in the second turn."""
    model, processor = mixed(BESIDE_OTHERS, positions=positions, summary_sees_audio=summary_sees_audio)
    turns = [
        ("<|audio|> what?", CLIPS[1:2]),
        ("and <|audio|><|audio|> or", [CLIPS[2], CLIPS[0]]),
        ("a bell", []),
        ("<|audio|>", CLIPS[:1]),
    ]
    ids, heard, cache = torch.zeros(1, 0, dtype=torch.int64), [], None
    with torch.no_grad():
        for text, clips in turns:
            new = processor(text, list(clips), sampling_rate=RATE_HZ, add_special_tokens=False)
            ids, heard = torch.cat([ids, new["input_ids"]], 1), heard + clips
            del new["attention_mask"]
            outputs = model(**new, past_key_values=cache, use_cache=True)
            cache = outputs.past_key_values
            expected = reference_logits(model, ids[0].tolist(), clip_tokens(model, processor, heard))
            torch.testing.assert_close(outputs.logits[0], expected[-new["input_ids"].shape[1] :], rtol=1e-5, atol=2e-5)


def test_a_stream_of_blocks_takes_no_span() -> None:
    model, processor = tiny_model("llama", "flamingo", positions="span")
    inputs = batch(processor, [message(CLIPS[2], CLIPS[1])])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    assert memory.clips.spans_C.tolist() == [0, 0]
    placed = model.attach(memory, inputs["input_ids"]).placement
    assert placed.position_ids_BL[0].tolist() == list(range(inputs["input_ids"].shape[1]))


def test_a_memory_serves_several_prompts_and_belongs_to_its_weights() -> None:
    model, processor = tiny_model("llama", "flamingo")
    inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[2])])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"]).to("cpu")
    live = model.encode(inputs["input_features"], inputs["audio_num_samples"])
    assert memory.num_bytes == 2 * 2 * 2 * live.widths[0] * 32 * 4  # two sides, two blocks, two clips
    other = batch(processor, [message(CLIPS[2], question="a bell")])
    with torch.no_grad():
        found = model(other["input_ids"], audio_memory=memory.select(torch.tensor([1]))).logits
        torch.testing.assert_close(found, model(**other).logits)
        model.streams[0].blocks["2"].output.weight[0, 0] += 0.5
    with pytest.raises(PalError, match="made by another model"):
        model(inputs["input_ids"], audio_memory=memory)


def test_a_lost_block_is_an_error() -> None:
    model, processor = tiny_model("llama", "flamingo")
    inputs = batch(processor, [message(CLIPS[0])])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    attached = model.attach(memory, inputs["input_ids"])
    model(inputs["input_ids"], audio_memory=attached)
    model.language_model.model.layers[2]._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="did not reach"):  # each forward is watched anew
        model(inputs["input_ids"], audio_memory=attached)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"did not reach the flamingo blocks before layers \[2\]"):
        model(**inputs)
    with pytest.raises(RuntimeError, match="did not reach"):
        model.generate(**inputs, max_new_tokens=1)
    model(**batch(processor, [message()]))  # text alone needs no block


def test_the_llm_keeps_its_attention_and_its_names() -> None:
    model, _ = tiny_model("llama", "flamingo")
    assert model.language_model.config._attn_implementation == "sdpa"
    bare = tiny_model("llama", "plits")[0].language_model
    assert list(model.language_model.state_dict()) == list(bare.state_dict())


def test_checkpointing_keeps_fewer_bytes_and_runs_each_block_twice() -> None:
    calls, kept = [], []
    for checkpointing in (False, True):
        model, processor = tiny_model("llama", "flamingo", flamingo={"layers": [0]})
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[2], CLIPS[1])], padding_side="right")
        model.streams[0].blocks["0"].register_forward_pre_hook(lambda *call, on=checkpointing: calls.append(on))
        shapes: list[tuple[int, ...]] = []

        def pack(tensor: torch.Tensor, shapes: list[tuple[int, ...]] = shapes) -> torch.Tensor:
            shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**inputs, use_cache=False).logits.pow(2).mean()
        loss.backward()
        kept.append(sum(shape[-1:] == (4 * 32,) and len(shape) == 3 for shape in shapes))  # of the block's own feed-forward
    assert calls == [False, True, True]
    assert kept[0] > kept[1] == 0


def test_training_its_part_changes_it_alone() -> None:
    model, processor = tiny_model("llama", "flamingo")
    groups = parameter_groups(model, {"flamingo": 1e-2}, weight_decay=0.1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.train()
    optimizer = torch.optim.AdamW(groups)
    for conversation in (message(CLIPS[0]), message()):  # the second batch is without audio
        optimizer.zero_grad()
        model(**batch(processor, [conversation]), use_cache=False).logits.pow(2).mean().backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if GROUPS["flamingo"](name)}
    assert {name.rpartition(".")[2] for name in changed} >= {*GATES, "weight", "bias"}
    vectors = [group for group in groups if group["weight_decay"] == 0.0]
    gates = [parameter for name, parameter in model.named_parameters() if name.endswith(GATES)]
    assert all(any(gate is one for one in vectors[0]["params"]) for gate in gates)
    with pytest.raises(PalError, match="'flamingo' names no parameter"):
        parameter_groups(tiny_model("llama", "lal")[0], {"flamingo": 1e-2}, 0.0)


def test_blocks_compile_as_one_graph() -> None:
    model, processor = tiny_model("llama", "flamingo")
    inputs = batch(processor, [message(CLIPS[0])])
    expected = model(**inputs, use_cache=False).logits
    torch._dynamo.reset()
    for layer in model.language_model.model.layers:
        layer.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(**inputs, use_cache=False).logits, expected)


def test_bfloat16_and_autocast_stay_near_float32() -> None:
    model, processor = tiny_model("llama", "flamingo", llm={"initializer_range": 0.1})
    inputs = batch(processor, [message(CLIPS[0]), message()])
    mask = inputs["attention_mask"].bool()
    exact = model(**inputs).logits[mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(**inputs).logits[mask]
    low.float().mean().backward()
    assert (low.float() - exact).pow(2).mean().sqrt() < 0.06 * exact.std()
    model.to(torch.bfloat16)
    low = model(**inputs).logits[mask]
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).pow(2).mean().sqrt() < 0.06 * exact.std()


def test_wrong_options_are_refused() -> None:
    with pytest.raises(PalError, match="num_heads: 3 does not divide the LLM's width 32"):
        tiny_model("llama", "flamingo", flamingo={"num_heads": 3})
    with pytest.raises(PalError, match=r"layers: \[7\]"):
        tiny_model("llama", "flamingo", flamingo={"layers": [7]})
    with pytest.raises(PalError, match="attends"):
        tiny_model("llama", "flamingo", flamingo={"attend": "last"})
    with pytest.raises(PalError, match="no part that `lal` could set"):
        preset("flamingo", TINY_ENCODER, lal={"layers": "all"})
    with pytest.raises(PalError, match="no part that `flamingo` could set"):
        preset("pal", TINY_ENCODER, flamingo={"layers": "all"})


def test_a_query_without_a_key_passes_unchanged_and_no_kernel_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel gives for a row without keys is its own matter: 0 on this CPU, NaN in some."""
    masks, kernel = [], torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, attn_mask: torch.Tensor) -> torch.Tensor:
        masks.append(attn_mask)
        return kernel(*args, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    torch.manual_seed(0)
    block = FlamingoBlock(FlamingoConfig(), 0, 8, 8, 2)
    text = torch.randn(1, 3, 8, requires_grad=True)
    visible = torch.tensor([[False, False], [True, False], [False, False]])[None, None]
    audio = torch.randn(1, 2, 8)
    assert torch.equal(block(text, *block.project(audio), visible), text)  # its gates start at 0
    perturb(block)
    output = block(text, *block.project(audio), visible)
    assert all(bool(mask.any(-1).all()) for mask in masks)
    assert len(masks) == 2
    assert torch.equal(output[0, ::2], text[0, ::2])
    assert not torch.equal(output[0, 1], text[0, 1])
    output[0, ::2].sum().backward()
    gradients = parameters_to_vector([torch.zeros_like(p) if p.grad is None else p.grad for p in block.parameters()])
    assert torch.equal(gradients, torch.zeros_like(gradients))


def test_the_span_that_is_planned_with_is_the_one_that_is_taken() -> None:
    """A clip's tokens for Flamingo blocks take no positions; those of a LAL stream beside them do."""
    for arm, takes in (("flamingo", False), ("lal", True)):
        model, processor = tiny_model("llama", arm)
        clip = processor.clip(noise(1.3), RATE_HZ)
        memory = model.encode_audio(**processor.collate_clips([clip]))
        planned = model.config.audio.span(clip.num_samples)
        assert planned == int(memory.clips.spans_C[0])
        assert (planned > 0) is takes
