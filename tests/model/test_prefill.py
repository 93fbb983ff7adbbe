"""A prompt as one function gives the tokens of `generate`, question after question. Float32, on the CPU, without a graph."""

import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from pal_audio import cli
from pal_audio.errors import PalError
from pal_audio.model import prefill
from pal_audio.model.decoder import Decoder
from pal_audio.model.decoding import greedy
from tests import cpu_graph
from tests.integration.test_prompt_kernel import LAL_MIXES, plain_attention
from tests.model.test_decoding import QUESTIONS, generated, mixed_batch
from tests.model.test_invariants import ARMS, CLIPS
from tests.model.test_mixed import MIXES, mixed
from tests.tiny import EAGER_ONLY, FAMILIES, batch, message, tiny_model

STATIC = [family for family in FAMILIES if family not in EAGER_ONLY]  # the others are `generate`'s
SAME_WIDTH = ("x q z", "x z q", "q x z")  # of equally many tokens


def remembered(model: Any, inputs: Any) -> dict[str, Any]:
    """The same question with a ready memory."""
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    return {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"audio_memory": memory}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", STATIC)
def test_tokens_equal_those_of_generate(family: str, arm: str) -> None:
    """No, one and two clips a row behind padding on the left; the second answer reuses what the first has made."""
    model, processor = tiny_model(family, arm)
    inputs = mixed_batch(processor)
    expected = generated(model, inputs, 8)
    decoder = Decoder(model, prefill="captured")
    ready = remembered(model, inputs)
    for asked in (inputs, ready, ready, ready):
        assert torch.equal(greedy(model, **asked, max_new_tokens=8, decoder=decoder), expected)
    assert decoder.why_plain_prefill is None


@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
def test_clips_are_placed_again_only_where_something_moved(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", arm)
    decoder, placed = Decoder(model, prefill="captured"), []
    place = model.place
    monkeypatch.setattr(model, "place", lambda *args, **options: (placed.append(1), place(*args, **options))[1])
    memory = None
    for question, moves in zip(SAME_WIDTH, (1, 0, 0), strict=True):
        inputs = batch(processor, [message(CLIPS[1], question=question)] * 2)
        memory = memory or remembered(model, batch(processor, [message(CLIPS[1])]))["audio_memory"]
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"audio_memory": memory.share(2)}
        placed.clear()
        answer = greedy(model, **asked, max_new_tokens=4, decoder=decoder)
        assert len(placed) == moves
        assert torch.equal(answer, generated(model, inputs, 4))
    # another place of the marker, other padding, other numbers of the clip
    moved = asked | {"input_ids": asked["input_ids"].roll(1, 1)}
    hidden = asked | {"attention_mask": asked["attention_mask"].clone()}
    hidden["attention_mask"][0, :2] = 0
    shorter = memory.share(2)
    shorter.clips = replace(shorter.clips, num_keys_SC=shorter.clips.num_keys_SC - 1, spans_C=shorter.clips.spans_C - 1)
    for other in (moved, asked, hidden, asked, *([asked | {"audio_memory": shorter}, asked] if arm == "lal" else [])):
        expected = model.generate(**other, max_new_tokens=4, do_sample=False)
        placed.clear()
        assert torch.equal(greedy(model, **other, max_new_tokens=4, decoder=decoder), expected)
        assert len(placed) == 1
    held = memory.tensors()[0]
    held.data = held.data + 1.0  # elsewhere, in the same tensor
    expected = model.generate(**asked, max_new_tokens=4, do_sample=False)
    placed.clear()
    assert torch.equal(greedy(model, **asked, max_new_tokens=4, decoder=decoder), expected)
    assert len(placed) == 1


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2"])
def test_rows_without_padding_equal_generate(family: str, arm: str) -> None:
    """They attend by the causal kernel where no layer has a shorter window."""
    model, processor = tiny_model(family, arm)
    inputs = batch(processor, [message(CLIPS[0]), message(CLIPS[0])])
    assert inputs["attention_mask"].all()
    decoder = Decoder(model, prefill="captured")
    for _ in range(2):
        assert torch.equal(greedy(model, **inputs, max_new_tokens=8, decoder=decoder), generated(model, inputs, 8))


@pytest.mark.parametrize("family", STATIC)
def test_text_alone_equals_generate(family: str) -> None:
    model, processor = tiny_model(family, "plits")
    decoder = Decoder(model, prefill="captured")
    for questions in (QUESTIONS, QUESTIONS[::-1], QUESTIONS[:1], QUESTIONS[:1]):
        inputs = batch(processor, [message(question=question) for question in questions])
        assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=decoder), generated(model, inputs, 6))


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ARMS)
def test_a_shared_memory_serves_every_row(arm: str, positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "captured", cpu_graph.captured)
    model, processor = tiny_model("llama", arm, positions=positions)
    decoder = Decoder(model, prefill="captured")
    for clips in ([CLIPS[1]], [CLIPS[2], CLIPS[0]], [CLIPS[0], CLIPS[0] / 2]):
        one = batch(processor, [message(*clips)])
        memory = model.encode_audio(one["input_features"], one["audio_num_samples"]).share(3)
        for questions in (QUESTIONS, QUESTIONS[::-1], QUESTIONS, (QUESTIONS[1], *QUESTIONS[:2])):
            inputs = batch(processor, [message(*clips, question=question) for question in questions])
            asked = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"audio_memory": memory}
            assert torch.equal(greedy(model, **asked, max_new_tokens=6, decoder=decoder), generated(model, inputs, 6))


@pytest.mark.parametrize("arm", ARMS)
def test_questions_memories_and_shapes_may_change_from_call_to_call(arm: str) -> None:
    model, processor = tiny_model("llama", arm)
    decoder = Decoder(model, prefill="captured")
    for clips in ((CLIPS[0],), (CLIPS[2],), (CLIPS[2], CLIPS[0]), ()):
        memory = None
        for question in (*SAME_WIDTH, *QUESTIONS):
            for system in ("you are a careful listener", None):
                inputs = batch(processor, [message(*clips, question=question, system=system)])
                asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                if clips:
                    memory = remembered(model, inputs)["audio_memory"] if memory is None else memory
                    asked["audio_memory"] = memory
                assert torch.equal(greedy(model, **asked, max_new_tokens=3, decoder=decoder), generated(model, inputs, 3))


@pytest.mark.parametrize("name", list(MIXES))
def test_streams_of_several_integrations(name: str) -> None:
    model, processor = mixed(name)
    inputs = mixed_batch(processor)
    decoder, ready = Decoder(model, prefill="captured"), remembered(model, inputs)
    for _ in range(2):
        assert torch.equal(greedy(model, **ready, max_new_tokens=5, decoder=decoder), generated(model, inputs, 5))


def test_only_another_memory_or_shape_is_bound_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question about a memory runs as it is, the second is captured, further ones replay."""
    model, processor = tiny_model("llama", "lal")
    decoder, captures = Decoder(model, prefill="captured"), []
    monkeypatch.setattr(prefill, "captured", lambda call, *_: (captures.append(1), call)[1])
    clips = [batch(processor, [message(clip)]) for clip in (CLIPS[1], CLIPS[1] / 2)]
    memories = [remembered(model, inputs)["audio_memory"] for inputs in clips]
    asked = [(0, 0), (0, 1), (0, 1), (1, 1), (0, 1), (0, 2)]  # memory, and captures after it
    for question, (which, times) in zip(SAME_WIDTH * 2, asked, strict=True):
        one = batch(processor, [message(CLIPS[1] if which == 0 else CLIPS[1] / 2, question=question)])
        text = {name: one[name] for name in ("input_ids", "attention_mask")}
        got = greedy(model, **text, audio_memory=memories[which], max_new_tokens=4, decoder=decoder)
        assert torch.equal(got, generated(model, one, 4))
        assert len(captures) == times


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ["text", *ARMS])
@pytest.mark.parametrize("family", STATIC)
def test_operations_repeated_on_the_same_tensors_answer_other_questions(
    family: str, arm: str, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph would do: no Python of the prompt runs again, and nothing in it waits for the device."""
    model, processor = tiny_model(family, "plits" if arm == "text" else arm, positions=positions)
    decoder, plain, runs = Decoder(model, prefill="captured"), Decoder(model), []
    if family == "gpt2":  # on the CPU alone its table of positions is looked at
        model.get_decoder().wpe._forward_pre_hooks.clear()
    monkeypatch.setattr(prefill, "captured", cpu_graph.captured)
    through = prefill.Prefill.through
    monkeypatch.setattr(prefill.Prefill, "through", lambda self: (runs.append(1), through(self))[1])
    clips = ((CLIPS[1],), (CLIPS[2], CLIPS[0])) if arm != "text" else ((), ())
    memory = None
    for number, question in enumerate((*SAME_WIDTH, QUESTIONS[0], SAME_WIDTH[0])):
        system = None if number == 3 else "you are a careful listener"  # other padding, and the marker stands elsewhere
        rows = [message(*clips[0], question=question, system=system), message(*clips[1], question=QUESTIONS[1])]
        inputs = batch(processor, rows)
        ready = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if arm != "text":
            memory = remembered(model, inputs)["audio_memory"] if memory is None else memory
            ready["audio_memory"] = memory
        runs.clear()
        answer = greedy(model, **ready, max_new_tokens=4, decoder=decoder)
        assert len(runs) == (1 if number < 2 else 0)
        assert torch.equal(answer, greedy(model, **ready, max_new_tokens=4, decoder=plain))
        seen = inputs["attention_mask"].bool()
        for name in ("keys", "values"):  # of the last layer: what all layers made of sound and text
            one, other = (getattr(item.cache.layers[-1], name)[:, :, : seen.shape[1]] for item in (decoder, plain))
            torch.testing.assert_close(one.transpose(1, 2)[seen], other.transpose(1, 2)[seen])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Graphs that torch.compile makes; they run as they are."""
    made: list[Any] = []

    def backend(module: Any, example_inputs: Any) -> Any:
        made.append(module)
        return module

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, backend=backend, **options))
    yield made
    torch.compiler.reset()


@pytest.mark.parametrize("arm", ["plits", "lal", "pal", "flamingo"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_prompt_is_compiled_without_a_break_and_once(family: str, arm: str, graphs: list[Any]) -> None:
    model, processor = tiny_model(family, arm)
    decoder = Decoder(model, compile=False, prefill="compiled")
    for number in range(4):
        clips = [CLIPS[1] / (1 + number // 2), CLIPS[0]]
        inputs = batch(processor, [message(clip) for clip in clips])
        ready = remembered(model, inputs)
        assert torch.equal(greedy(model, **ready, max_new_tokens=3, decoder=decoder), generated(model, inputs, 3))
        assert len(graphs) == (0 if number == 0 else 2), "the first prompt of a shape makes the text cache"


def test_torch_2_11_finds_nothing_in_a_compiled_prompt_that_it_cannot_trace() -> None:
    """Its Dynamo has no `bool` of a dict, by which a compiled prompt of Flamingo failed on a GPU; 2.13 has."""
    compiled = prefill.Prefill.open, prefill.Prefill.through
    assert not [part.__name__ for part in compiled if "bool(" in inspect.getsource(part)]


def test_a_prompt_by_inductor_gives_the_same_tokens() -> None:
    model, processor = tiny_model("llama", "pal")
    inputs = batch(processor, [message(CLIPS[1]), message(CLIPS[0], question="a bell")])
    ready, expected = remembered(model, inputs), generated(model, inputs, 3)
    decoder = Decoder(model, compile=False, prefill="compiled")
    for _ in range(3):
        assert torch.equal(greedy(model, **ready, max_new_tokens=3, decoder=decoder), expected)
    torch.compiler.reset()


# ---- layers with audio by an attention of their own -----------------------------------------------------------------


@pytest.fixture
def kernel() -> Any:
    """The kernel in Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernel on a CPU needs triton and TRITON_INTERPRET=1")
    from pal_audio.integration import prompt_kernel

    return prompt_kernel.prompt_attention


def counted(decoder: Decoder, attention: Any) -> list[Any]:
    """Let a decoder's prompts attend by `attention`; the audio of every call is noted."""
    heard: list[Any] = []

    def attend(query: Any, text: Any, audio: Any, scale: float) -> Any:
        heard.append(audio)
        return attention(query, text, audio, scale)

    decoder.prompt_attention = attend
    return heard


def check_cache(one: Decoder, other: Decoder, mask: Any) -> None:
    """Keys and values of text in the last layer: what all layers made of sound and text."""
    seen = mask.bool()
    for name in ("keys", "values"):
        ours, theirs = (getattr(decoder.cache.layers[-1], name)[:, :, : seen.shape[1]] for decoder in (one, other))
        torch.testing.assert_close(ours.transpose(1, 2)[seen], theirs.transpose(1, 2)[seen], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arm", ["lal", "pal"])
@pytest.mark.parametrize("family", STATIC)
def test_an_attention_of_their_own_gives_the_same_answers(family: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By plain operations in the kernel's place: what it is told is right in every family."""
    check_answers(family, arm, plain_attention, monkeypatch)


@pytest.mark.parametrize(("family", "arm"), [("llama", "lal"), ("mistral", "pal")])
def test_the_kernel_gives_the_same_answers(family: str, arm: str, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One family with windows."""
    check_answers(family, arm, kernel, monkeypatch)


def check_answers(family: str, arm: str, attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No, one and two clips a row behind padding, and one that rows without padding share; the third answer is a replay."""
    monkeypatch.setattr(prefill, "captured", cpu_graph.captured)
    model, processor = tiny_model(family, arm, llm={} if family in ("gpt2", "gpt_neox") else {"head_dim": 32})
    if family == "gpt2":  # on the CPU alone its table of positions is looked at
        model.get_decoder().wpe._forward_pre_hooks.clear()
    decoder, plain = Decoder(model, prefill="captured"), Decoder(model)
    heard = counted(decoder, attention)
    one, rows = batch(processor, [message(CLIPS[1])]), batch(processor, [message(CLIPS[1], question=q) for q in SAME_WIDTH])
    assert rows["attention_mask"].all()
    shared = {name: rows[name] for name in ("input_ids", "attention_mask")}
    shared["audio_memory"] = remembered(model, one)["audio_memory"].share(len(SAME_WIDTH))
    for ready, held in ((remembered(model, mixed_batch(processor)), 4), (shared, 1)):
        expected = model.generate(**ready, max_new_tokens=2, do_sample=False)
        heard.clear()
        for _ in range(3):
            assert torch.equal(greedy(model, **ready, max_new_tokens=2, decoder=decoder), expected)
        assert [audio.keys.shape[0] for audio in heard] == 2 * 4 * [held], "once as it is, once captured, in each layer"
        greedy(model, **ready, max_new_tokens=2, decoder=plain)
        check_cache(decoder, plain, ready["attention_mask"])
    turned_here = {"llama": 4, "mistral": 4, "smollm3": 2}
    if family in turned_here:
        assert sum(audio.tables is not None for audio in heard[:4]) == turned_here[family]
        assert heard[0].keys.data_ptr() == shared["audio_memory"].keys[0][0].data_ptr(), "read where it lies"


@pytest.mark.parametrize("name", LAL_MIXES)
def test_a_kernel_hears_streams_of_several_integrations(name: str) -> None:
    model, processor = mixed(name)
    inputs = mixed_batch(processor)
    decoder, ready = Decoder(model, prefill="captured"), remembered(model, inputs)
    heard = counted(decoder, plain_attention)
    for _ in range(2):
        assert torch.equal(greedy(model, **ready, max_new_tokens=5, decoder=decoder), generated(model, inputs, 5))
    assert heard


def test_a_prompt_with_the_kernel_is_compiled_without_a_break(kernel: Any, graphs: list[Any]) -> None:
    model, processor = tiny_model("llama", "lal", llm={"head_dim": 32})
    decoder = Decoder(model, compile=False, prefill="compiled")
    decoder.prompt_attention = kernel
    for number in range(3):
        inputs = batch(processor, [message(CLIPS[1] / (1 + number))])
        ready = remembered(model, inputs)
        assert torch.equal(greedy(model, **ready, max_new_tokens=2, decoder=decoder), generated(model, inputs, 2))
    assert len(graphs) == 2
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert sum("pal_audio.prompt_attention" in target for target in targets) == 4, "one operator a layer"


def test_the_decoders_switch_governs_prompts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama", "lal")
    assert Decoder(model, prefill="captured").prompt_attention is None, "on a CPU, SDPA"
    made: list[Any] = []
    init = Decoder.__init__
    monkeypatch.setattr(
        Decoder, "__init__", lambda self, *args, **options: (made.append(options), init(self, *args, **options))[1]
    )
    for way, kernel in (("compiled", None), ("compiled-matmul", False)):
        made.clear()
        sizes = "--llm tiny-llama --encoder tiny-frames --batch 1 --text-tokens 12 --audio-tokens 8 --repeats 1 --new-tokens 2"
        options = f"--integrations lal --decode {way} --prefill captured --device cpu --json"
        assert cli.main(["bench", "infer", *sizes.split(), *options.split()]) == 0
        assert {options["kernel"] for options in made if "prefill" in options} == {kernel}


def test_what_goes_the_plain_way_is_told() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(CLIPS[0])])
    ready = remembered(model, inputs)
    attached = model.attach(ready["audio_memory"], ready["input_ids"], ready["attention_mask"])
    decoder = Decoder(model, prefill="captured")
    got = greedy(model, **(ready | {"audio_memory": attached}), max_new_tokens=4, decoder=decoder)
    assert torch.equal(got, generated(model, inputs, 4))
    assert decoder.why_plain_prefill == "audio was attached before"
    assert torch.equal(greedy(model, **ready, max_new_tokens=4, decoder=decoder), got)
    assert decoder.why_plain_prefill is None
    with pytest.raises(PalError, match="prefill: 'fast' is not one of plain, captured, compiled"):
        Decoder(model, prefill="fast")


def test_shapes_that_cannot_be_compiled_any_more_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", "lal")
    monkeypatch.setattr(prefill, "MAX_SHAPES", 1)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, backend="eager", **options))
    decoder = Decoder(model, compile=False, prefill="compiled")
    for question in QUESTIONS[:2]:
        inputs = batch(processor, [message(CLIPS[0], question=question)])
        ready, expected = remembered(model, inputs), generated(model, inputs, 3)
        for _ in range(3):
            assert torch.equal(greedy(model, **ready, max_new_tokens=3, decoder=decoder), expected)
    assert decoder.why_plain_prefill == "more than 1 shapes of prompts were compiled"
    torch.compiler.reset()


@pytest.mark.parametrize("arm", ["lal", "plits"])
def test_the_guards_hold(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", arm)
    other, _ = tiny_model("llama", arm, seed=1)
    inputs = batch(processor, [message(CLIPS[0])])
    ready, text = remembered(model, inputs), {name: inputs[name] for name in ("input_ids", "attention_mask")}
    foreign = remembered(other, inputs)
    decoder = Decoder(model, prefill="captured")
    for _ in range(2):
        with pytest.raises(PalError, match="made by another model"):
            greedy(model, **foreign, max_new_tokens=3, decoder=decoder)
        with pytest.raises(PalError, match="but no audio was given"):
            greedy(model, **text, max_new_tokens=3, decoder=decoder)
        with pytest.raises(PalError, match="not both"):
            greedy(model, **inputs, audio_memory=ready["audio_memory"], max_new_tokens=3, decoder=decoder)
        with pytest.raises(PalError, match="2 clips were given"):
            greedy(model, **text, audio_memory=ready["audio_memory"].share(2), max_new_tokens=3, decoder=decoder)
        assert torch.equal(greedy(model, **ready, max_new_tokens=3, decoder=decoder), generated(model, inputs, 3))
    forged = replace(ready["audio_memory"], keys=[{}], values=[{}])
    if arm == "lal":
        with pytest.raises(PalError, match="this audio memory is not whole"):
            greedy(model, **text, audio_memory=forged, max_new_tokens=3, decoder=decoder)
    with torch.no_grad():
        next(model.streams.parameters()).add_(1.0)
    with pytest.raises(PalError, match="before its weights changed"):
        greedy(model, **ready, max_new_tokens=3, decoder=decoder)


@pytest.mark.parametrize("arm", ["lal", "flamingo"])
def test_lost_audio_is_an_error(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", arm)
    inputs = batch(processor, [message(CLIPS[0])])
    if arm == "lal":
        monkeypatch.setattr(model, "hook_attention", lambda: model.language_model.set_attn_implementation("sdpa"))
    else:
        for layer in model.get_decoder().layers:
            layer._forward_pre_hooks.clear()
    with pytest.raises(RuntimeError, match="4 of 4 layers did not attend through PAL" if arm == "lal" else "audio did not reach"):
        greedy(model, **inputs, max_new_tokens=3, decoder=Decoder(model, prefill="captured"))


def test_small_tensors_are_filled_by_one_copy() -> None:
    tensors = [torch.arange(3), torch.tensor([[True, False]]), torch.rand(2, 5), torch.zeros(0, dtype=torch.int64)]
    inputs = prefill.Inputs(tensors, torch.device("cpu"))
    inputs.fill(tensors)
    places = [tensor.data_ptr() for tensor in inputs.tensors]
    for one, other in zip(inputs.tensors, tensors, strict=True):
        assert torch.equal(one, other)
        assert not one.numel() or one.data_ptr() % 16 == 0
    inputs.fill([torch.arange(3) + 1, *tensors[1:]])
    assert inputs.tensors[0].tolist() == [1, 2, 3]
    assert [tensor.data_ptr() for tensor in inputs.tensors] == places


@pytest.mark.parametrize(
    ("setting", "reason"), [(["--precision", "autocast"], "autocast"), (["--set", "setup.kernel=eager"], "the pal_eager kernel")]
)
def test_a_row_says_what_it_cannot_have(setting: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--llm tiny-llama --encoder tiny-frames --batch 1 --text-tokens 12 --audio-tokens 8 --repeats 1 --new-tokens 2"
    options = [*sizes.split(), *"--decode compiled --prefill captured --device cpu --json".split(), *setting]
    assert cli.main(["bench", "infer", *options]) == 1
    rows = json.loads(capsys.readouterr().out)["groups"][0]
    assert any(f"prefill captured: {reason}" in (row["error"] or "") for row in rows)


@pytest.mark.parametrize("way", ["captured", "compiled"])
def test_the_benchmark_measures_it(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--llm tiny-llama --encoder tiny-frames --batch 2 --text-tokens 12 --audio-tokens 8 --repeats 1 --new-tokens 2"
    options = f"--precision float32 --integrations lal,pal --decode compiled --prefill {way} --device cpu --json"
    assert cli.main(["bench", "infer", *sizes.split(), *options.split()]) == 0
    rows = json.loads(capsys.readouterr().out)["groups"][0]
    assert [row["case"]["integration"] for row in rows] == ["text", "plits", "lal", "pal"]
    assert all(row["error"] is None and row["ready_first_token_s"] > 0 and row["kv_bytes"] > 0 for row in rows)
    assert all(row["case"]["extra"]["prefill"] == way for row in rows)
