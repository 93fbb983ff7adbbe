"""Composed projections in the model: the same gradients, only where a training step keeps them and it is less."""

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pal_audio.bench import models
from pal_audio.bench.case import Case, Setup
from pal_audio.errors import PalError
from pal_audio.integration import projectors
from pal_audio.integration.projectors import ComposableMaps
from pal_audio.model import compiling
from tests.tiny import TINY_ENCODER, batch, message, noise, tiny_model

from .test_joint_projections import gradients, watch_products
from .test_streams import two_encoders


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers of each composed product."""
    found: list[int] = []
    for name in ("composed_projections", "shared_projections"):

        def watched(compose: Any, *given: Any) -> Any:
            found.append(len(given[-1]))
            return compose(*given)

        monkeypatch.setattr(projectors, name, partial(watched, getattr(projectors, name)))
    return found


def inputs_of(processor: Any) -> Any:
    answered = [
        [*message(noise(seconds, seed)), {"role": "assistant", "content": "a dog"}] for seed, seconds in enumerate((1.3, 0.6))
    ]
    return batch(processor, answered, return_labels=True)


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 2e-6, rtol: float = 2e-4) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}")


def model_of(family: str, arm: str, projector: str, **llm: Any) -> tuple[Any, Any]:
    """With maps that all differ: low-rank ones start at zero."""
    model, processor = tiny_model(family, arm, llm=llm, lal={"projector": projector})
    torch.manual_seed(0)
    for parameter in model.streams.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model, processor


@pytest.mark.parametrize("projector", ["per_layer", "shared", "low_rank"])
@pytest.mark.parametrize(
    ("family", "arm"), [("llama", "lal"), ("llama", "pal"), ("qwen2", "lal"), ("qwen3", "lal"), ("gemma3_text", "lal")]
)
def test_losses_and_gradients_are_those_of_maps_apart(calls: list[int], family: str, arm: str, projector: str) -> None:
    model, processor = model_of(family, arm, projector)
    inputs = inputs_of(processor)
    expected = gradients(model, inputs)
    assert not calls
    model.projections = "composed"
    found = gradients(model, inputs)
    assert calls == [1] * len(model.get_decoder().layers)
    check(found, expected)
    calls.clear()
    model.projections_at_once = 4
    found = gradients(model, inputs)
    assert calls == [2, 2]
    check(found, expected)


def test_where_projections_are_not_kept_or_not_plain_maps_are_apart(calls: list[int]) -> None:
    model, processor = tiny_model("llama", "lal")
    model.projections = "composed"
    inputs = batch(processor, [message(noise(1.3, 1))])
    with torch.no_grad():
        model(**inputs)
    model.recompute_audio = "full"
    model(**inputs)
    model.recompute_audio = "none"
    layer = model.get_decoder().layers[0]
    handle = layer.self_attn.k_proj.register_forward_hook(lambda *_: None)
    model(**inputs)
    assert len(calls) == len(model.get_decoder().layers) - 1
    handle.remove()


@pytest.mark.parametrize("part", ["own.1", "own.1.down", "own.1.up"])
def test_a_low_rank_map_with_a_hook_stays_apart(calls: list[int], part: str) -> None:
    model, processor = model_of("llama", "lal", "low_rank")
    inputs = inputs_of(processor)
    expected = gradients(model, inputs)
    model.projections = "composed"
    handle = model.streams[0].projectors.get_submodule(part).register_forward_hook(lambda *_: None)
    found = gradients(model, inputs)
    handle.remove()
    assert sum(calls) == (3 if part == "own.1.up" else 0), "those below are made together, or not at all"
    check(found, expected)


def test_few_tokens_are_projected_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    composes = ComposableMaps.composes

    def watched(self: ComposableMaps, layer: int, num_outputs: int) -> bool:
        seen.append(composes(self, layer, num_outputs))
        return seen[-1]

    monkeypatch.setattr(ComposableMaps, "composes", watched)
    model, processor = tiny_model("llama", "lal")
    model.projections_at_once = 4
    model(**batch(processor, [message(noise(0.2, 1))]))
    model(**batch(processor, [message(noise(3.0, seed)) for seed in range(24)]))
    num = len(model.get_decoder().layers)
    assert seen == [False] * num + [True] * num


@pytest.mark.parametrize(("rank", "expected"), [(8, 4), (9, 0)])
def test_a_low_rank_is_composed_by_itself_where_it_is_low(calls: list[int], rank: int, expected: int) -> None:
    model, processor = tiny_model("llama", "lal", lal={"projector": "low_rank", "rank": rank})
    assert model.config.text_config.hidden_size == 32
    model.projections_at_once = 4
    model(**inputs_of(processor))
    assert sum(calls) == expected


def test_parts_whose_norms_add_another_number_are_made_apart(calls: list[int]) -> None:
    model, processor = model_of("llama", "lal", "shared")
    inputs = inputs_of(processor)
    norm = model.get_decoder().layers[3].input_layernorm
    norm.variance_epsilon = model._rules[3]._rms_norm.eps = 0.5
    expected = gradients(model, inputs)
    model.projections, model.projections_at_once = "composed", 4
    found = gradients(model, inputs)
    assert calls == [2, 1, 1]
    check(found, expected)


@pytest.mark.parametrize("projector", ["per_layer", "shared", "low_rank"])
def test_a_compiled_decoder_has_the_gradients_of_the_eager_one(calls: list[int], projector: str) -> None:
    model, processor = model_of("llama", "lal", projector)
    inputs = inputs_of(processor)
    expected = gradients(model, inputs)
    model.projections = "composed"
    compiling.enable(model)
    try:
        found = gradients(model, inputs)
    finally:
        compiling.disable(model)
    assert calls == [2, 2], "several at once, each once as the graph is made"
    check(found, expected, atol=1e-5, rtol=1e-3)


def test_a_projector_that_is_not_plain_or_normed_stays_apart(calls: list[int]) -> None:
    model, processor = tiny_model("olmo2", "lal")
    inputs = inputs_of(processor)
    expected = gradients(model, inputs)
    model.projections = "composed"
    found = gradients(model, inputs)
    assert not calls, "its projectors end in a norm"
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    model, processor = tiny_model("llama", "lal")
    model.projections = "composed"
    handle = model.streams[0].projectors.own["1"].register_forward_hook(lambda *_: None)
    model(**batch(processor, [message(noise(1.3, 1))]))
    handle.remove()
    assert len(calls) == len(model.get_decoder().layers) - 1


def test_each_layer_composes_with_the_tokens_that_it_reads(calls: list[int]) -> None:
    encoder = TINY_ENCODER | {"num_layers": 2, "encoder_layers": "per_llm_layer"}
    model, processor = tiny_model("llama", "lal", encoder=encoder)
    inputs = inputs_of(processor)
    expected = gradients(model, inputs)
    model.projections = "composed"
    found = gradients(model, inputs)
    assert calls
    check(found, expected)


def test_streams_compose_each_for_itself(calls: list[int]) -> None:
    model, processor = two_encoders()
    inputs = inputs_of(processor)
    expected = gradients(model, inputs)
    model.projections, model.projections_at_once = "composed", 2
    found = gradients(model, inputs)
    assert calls == [1] * 5, "three layers of one stream and two of the other, the last of each by themselves"
    check(found, expected)


def test_where_it_is_not_less_projections_are_joined_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = inputs_of(processor)
    sizes = watch_products(monkeypatch)
    model.projections_at_once = 4
    model(**inputs)
    assert sizes == [2, 2]
    sizes.clear()
    model.projections = "composed"
    model(**inputs)
    assert not sizes


@pytest.mark.parametrize("projector", ["per_layer", "shared", "low_rank"])
def test_batches_of_other_sizes_are_compiled_as_rarely_as_apart(projector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, compiled = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled(function, backend="aot_eager"))
    for word in ("apart", "composed"):
        torch._dynamo.reset()
        model, processor = model_of("llama", "lal", projector, num_hidden_layers=2)
        model.projections = word
        compiling.enable(model)
        counters.clear()
        for seconds in ((1.3, 0.6), (1.7, 0.6), (2.5, 0.9), (0.7, 0.7)):
            model(**batch(processor, [message(noise(each, 1)) for each in seconds])).logits.sum().backward()
        numbers.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert numbers[1] <= numbers[0] + 1, "tokens by pieces, where they can be cut into them"


def test_projectors_with_a_hook_on_all_of_them_stay_apart(calls: list[int]) -> None:
    model, processor = model_of("llama", "lal", "shared")
    model.projections = "composed"
    handle = model.streams[0].projectors.register_forward_hook(lambda *_: None)
    model(**inputs_of(processor))
    assert not calls
    handle.remove()
    model(**inputs_of(processor))
    assert calls


def test_a_step_that_is_not_compiled_composes_nothing_by_itself(calls: list[int]) -> None:
    model, processor = model_of("llama", "lal", "shared")
    inputs = inputs_of(processor)
    assert model.projections == "auto"
    model(**inputs)
    assert not calls
    model.projections_at_once = 4
    model(**inputs)
    assert calls


def test_another_word_is_refused(calls: list[int]) -> None:
    model, processor = tiny_model("llama", "lal")
    model.projections = "joined"
    with pytest.raises(PalError, match="projections: 'joined' is not one of apart, auto, composed"):
        model(**batch(processor, [message(noise(1.3, 1))]))


def test_the_benchmarks_setting_reaches_the_model(calls: list[int]) -> None:
    sizes = {"batch": 2, "audio_tokens": 24, "text_tokens": 12}
    keys = []
    for word in ("apart", "composed"):
        setup = Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32", projections=word)  # type: ignore[arg-type]
        case = Case(setup=setup, integration="lal", **sizes)
        model = models.build(case, torch.device("cpu"))
        models.training_mode(case, model)
        calls.clear()
        models.loss_function(case, model, models.make_batch(case, model))()
        assert bool(calls) == (word == "composed")
        keys.append(case.key)
    assert keys[0] == "360e8ba37e768081" != keys[1], "rows from before there was the setting are found"
    plain, compiled = (
        Setup(llm="tiny-llama", encoder="tiny-frames", precision="float32", compile=way) for way in ("none", "model")
    )  # type: ignore[arg-type]
    assert Case(setup=plain, integration="lal", **sizes).key == keys[0], "nothing is composed in a step that is not compiled"
    assert compiled.projections == "auto"
    for keeps_less in ({"checkpointing": True}, {"recompute_audio": "light"}):
        assert Setup(**compiled.model_dump() | keeps_less).projections == "apart"
