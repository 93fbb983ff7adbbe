"""Maps of one input as one product: the tokens, weights and files of maps apart. Float32, on the CPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.decoder import Decoder
from pal_audio.model.decoding import greedy
from pal_audio.model.joined_weights import JoinedMaps, called_as_one, joinable
from pal_audio.training.checkpoint import _own_tensors
from tests.tiny import batch, message, noise, tiny_model

CLIPS = noise(0.7), noise(1.3, seed=1)
QUESTIONS = ("a bell", "how many sounds come before the siren?")
ADAPTER = {"type": "lora", "r": 3}


def asked(processor: Any, heard: bool = True) -> Any:
    clips = CLIPS if heard else ()
    rows = [message(*clips[: number + 1], question=question) for number, question in enumerate(QUESTIONS)]
    return batch(processor, rows)


def joined_decoder(model: Any, **options: Any) -> Decoder:
    decoder = Decoder(model, join=True, **options)
    decoder.allocate(1, 8, [], 0)
    return decoder


def attention_of(model: Any, layer: int = 0) -> Any:
    return model.language_model.model.layers[layer].self_attn


def storages(tensors: Any) -> dict[int, int]:
    """Bytes of each storage."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Graphs that `torch.compile` traces, which are then run as they are."""
    traced: list[Any] = []

    def backend(module: Any, example_inputs: Any) -> Any:
        traced.append(module.graph)
        return module

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, **options: compile_(call, backend=backend, **options))
    torch.compiler.reset()
    yield traced
    torch.compiler.reset()


def num_products(graph: Any) -> int:
    return sum(node.target in (F.linear, torch._C._nn.linear) for node in graph.nodes)


# ---- answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["text", "plits", "lal", "pal"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "mistral", "olmo2"])
def test_tokens_equal_those_of_generate(family: str, arm: str) -> None:
    model, processor = tiny_model(family, "plits" if arm == "text" else arm)
    inputs = asked(processor, heard=arm != "text")
    expected = model.generate(**inputs, max_new_tokens=10, do_sample=False)
    for join in (False, True):
        decoder = Decoder(model, join=join)
        assert torch.equal(greedy(model, **inputs, max_new_tokens=10, decoder=decoder), expected)
        assert len(decoder._joined) == (8 if join else 0)
    assert torch.equal(model.generate(**inputs, max_new_tokens=10, do_sample=False), expected)


@pytest.mark.parametrize("arm", ["plits", "pal"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "mistral"])
def test_a_traced_step_has_three_products_a_layer_less(graphs: list[Any], family: str, arm: str) -> None:
    model, processor = tiny_model(family, arm)
    inputs = asked(processor)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    for join in (False, True, True, False):
        decoder = Decoder(model, compile=True, join=join)
        for _ in range(2):
            assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=decoder), expected)
        assert not any(maps._kept for maps in decoder._joined)
    apart, joined = map(num_products, graphs)  # each compiled once, whatever the number of decoders
    assert joined == apart - 3 * 4
    left = [len(graph.output_node().args[0]) for graph in graphs]
    assert left[0] == left[1], "nothing of a step outlives it"
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_memory_that_lies_elsewhere_compiles_nothing_anew(graphs: list[Any]) -> None:
    model, processor = tiny_model("llama", "lal")
    decoder = Decoder(model, compile=True, join=True)
    for _ in range(2):
        inputs = asked(processor)
        greedy(model, **inputs, max_new_tokens=4, decoder=decoder)
    assert len(graphs) == 1


def test_forwards_are_replaced_within_a_step_alone() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = asked(processor)
    decoder = Decoder(model, join=True)
    step, replaced = decoder.step, []

    def watched() -> None:
        replaced.append("forward" in vars(attention_of(model).v_proj))
        step()

    decoder.step = watched  # type: ignore[method-assign]
    greedy(model, **inputs, max_new_tokens=4, decoder=decoder)
    assert len(replaced) > 1
    assert all(replaced)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(maps._kept for maps in decoder._joined)


def test_forwards_are_restored_after_an_error() -> None:
    model, processor = tiny_model("llama", "lal")
    decoder = Decoder(model, join=True)

    def fails() -> None:
        attention_of(model).q_proj(torch.zeros(1, 32))
        raise KeyError("a step")

    decoder.step = fails  # type: ignore[method-assign]
    with pytest.raises(KeyError, match="a step"):
        greedy(model, **asked(processor), max_new_tokens=4, decoder=decoder)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(maps._kept for maps in decoder._joined)


def test_maps_of_encoders_stay_apart() -> None:
    model, _ = tiny_model("llama", "lal")
    model.streams[0].elsewhere = Elsewhere("")
    assert len(joinable(model, model)) == 9
    assert len(joined_decoder(model)._joined) == 8


def test_default_joins_what_is_compiled_on_a_gpu() -> None:
    model, _ = tiny_model("llama", "lal")
    assert Decoder(model).join is False
    assert Decoder(model, compile=True).join is False, "on the CPU"


class Elsewhere(nn.Module):
    """Its maps are called in some order, on some inputs."""

    def __init__(self, calls: str) -> None:
        super().__init__()
        self.calls = calls
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 6)

    def forward(self, one: Tensor, two: Tensor) -> list[Tensor]:
        """`calls`: a map and the number of its input, each."""
        inputs = {"1": one.sin(), "2": two.sin()}
        return [
            getattr(self, f"{name}_proj")(inputs[number]) for name, number in (call.split(":") for call in self.calls.split())
        ]


@pytest.mark.parametrize(
    ("calls", "products"),
    [
        ("q:1 k:1 v:1", 1), ("q:1 v:1 k:1", 1), ("q:1 k:2 v:2", 3), ("q:1 k:2 v:1", 2), ("k:1 q:1 v:1", 2), ("k:1 v:1", 2),
        ("q:1 k:1 v:1 q:2 k:2 v:2", 2), ("q:1 q:2 k:1 v:2", 3), ("q:1 k:1 k:1 v:1", 1), ("q:1", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compile", [False, True])
def test_any_order_and_input_give_the_maps_own_results(graphs: list[Any], compile: bool, calls: str, products: int) -> None:
    module = Elsewhere(calls)
    one, two = torch.randn(3, 8), torch.randn(3, 8)
    expected = module(one, two)
    joined = [JoinedMaps(maps) for maps in joinable(module, module)]

    def call() -> list[Tensor]:
        outputs = module(one, two)
        for maps in joined:
            maps.forget()
        return outputs

    with torch.no_grad(), called_as_one(joined):
        run: Callable[[], list[Tensor]] = torch.compile(call, fullgraph=True) if compile else call
        for _ in range(2):
            for got, wanted in zip(run(), expected, strict=True):
                torch.testing.assert_close(got, wanted)
            assert not joined[0]._kept
    assert [num_products(graph) for graph in graphs] == ([products] if compile else [])


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_become_views_and_keep_names_and_values(family: str) -> None:
    model, _ = tiny_model(family, "lal")
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    held = sum(storages(model.parameters()).values())
    decoder = joined_decoder(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    for name, (parameter, values) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, values), name
        assert parameter.is_leaf
        assert parameter.requires_grad
    assert sum(storages(model.parameters()).values()) == held
    assert len(decoder._joined) == 8
    for maps in decoder._joined:
        kinds = [(maps.weight, "weight")] + ([] if maps.bias is None else [(maps.bias, "bias")])
        assert (maps.bias is not None) == (family == "qwen2" and len(maps.maps) == 3)
        for whole, name in kinds:
            rows = whole.split(maps.sizes)
            assert [getattr(part, name).data_ptr() for part in maps.maps] == [part.data_ptr() for part in rows]
            assert torch.equal(whole, torch.cat([getattr(part, name) for part in maps.maps]))


def test_a_second_decoder_copies_nothing() -> None:
    model, _ = tiny_model("qwen2", "lal")
    first = joined_decoder(model)
    at = [parameter.data_ptr() for parameter in model.parameters()]
    second = joined_decoder(model)
    assert at == [parameter.data_ptr() for parameter in model.parameters()]
    for one, other in zip(first._joined, second._joined, strict=True):
        assert one.weight.data_ptr() == other.weight.data_ptr()
        assert one.weight.shape == other.weight.shape
        assert torch.equal(one.weight, other.weight)


def test_what_was_looked_at_before_is_let_go() -> None:
    """The fingerprint's views would hold the storages that the weights had."""
    model, processor = tiny_model("llama", "lal")
    inputs = asked(processor)
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    model.check_fingerprint(memory)
    joined_decoder(model)
    assert model._fingerprint._seen is None
    model.check_fingerprint(memory)


def test_a_decoder_notices_that_weights_were_moved() -> None:
    """By another decoder, whose joining leaves storages that a graph of this one would read, or by a cast."""
    model, processor = tiny_model("llama", "lal")
    inputs = asked(processor)
    apart = Decoder(model, join=False)
    sound = inputs.pop("input_features"), inputs.pop("audio_num_samples")
    inputs["audio_memory"] = model.encode_audio(*sound)
    once = greedy(model, **inputs, max_new_tokens=4, decoder=apart)
    cache = apart.cache
    assert torch.equal(greedy(model, **inputs, max_new_tokens=4, decoder=apart), once)
    assert apart.cache is cache
    decoder = joined_decoder(model)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=4, decoder=apart), once)
    assert apart.cache is not cache, "what was captured is made anew"
    model.double().float()
    with torch.no_grad():
        attention_of(model).v_proj.weight.mul_(-3)
    assert torch.equal(
        greedy(model, **asked(processor), max_new_tokens=8, decoder=decoder),
        model.generate(**asked(processor), max_new_tokens=8, do_sample=False),
    )
    assert len(decoder._joined) == 8
    for maps in decoder._joined:
        assert maps.weight.data_ptr() == maps.maps[0].weight.data_ptr()


def test_a_training_step_changes_what_the_joined_step_computes() -> None:
    model, processor = tiny_model("qwen2", "lal")
    inputs = asked(processor)
    with torch.inference_mode():  # what is joined here can be trained
        joined_decoder(model)
    decoder = Decoder(model, join=True)
    first = greedy(model, **inputs, max_new_tokens=12, decoder=decoder)
    at = [parameter.data_ptr() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(attention_of(model).get_submodule(f"{name}_proj").weight.grad.abs().sum() > 0 for name in "qkv")
    optimizer.step()
    assert at == [parameter.data_ptr() for parameter in model.parameters()]
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert not torch.equal(first, expected)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=12, decoder=decoder), expected)


def test_a_step_of_training_gives_what_it_gave_apart() -> None:
    results = []
    for join in (False, True):
        model, processor = tiny_model("qwen2", "pal")
        if join:
            joined_decoder(model)
        inputs = asked(processor)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            loss.backward()
            optimizer.step()
        results.append((loss, model.state_dict()))
    (one, apart), (other, joined) = results
    assert torch.equal(one, other)
    for name, tensor in apart.items():
        assert torch.equal(tensor, joined[name]), name


# ---- files and copies -----------------------------------------------------------------------------------------------


def file_bytes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*.safetensors")}


def test_a_saved_model_is_the_one_that_was(tmp_path: Path) -> None:
    model, processor = tiny_model("qwen2", "pal")
    inputs = asked(processor)
    model.save_pretrained(tmp_path / "apart")
    joined_decoder(model)
    model.save_pretrained(tmp_path / "joined")
    assert file_bytes(tmp_path / "joined") == file_bytes(tmp_path / "apart") != {}
    for path in (tmp_path / "apart").rglob("*.safetensors"):
        stored, expected = load_file(tmp_path / "joined" / path.name), load_file(path)
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[name], expected[name]) for name in expected)
    again = PalForConditionalGeneration.from_pretrained(tmp_path / "joined").eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    again.generation_config = model.generation_config
    options = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(again.generate(**inputs, **options), model.generate(**inputs, **options))
    maps = attention_of(model)
    assert maps.k_proj.weight.untyped_storage().data_ptr() == maps.q_proj.weight.untyped_storage().data_ptr(), "as before"


def test_checkpoints_of_training_hold_every_weight_once(tmp_path: Path) -> None:
    model, _ = tiny_model("qwen2", "lal")
    save_file(_own_tensors(model.state_dict()), tmp_path / "apart.safetensors")
    joined_decoder(model)
    save_file(_own_tensors(model.state_dict()), tmp_path / "joined.safetensors")
    sizes = file_bytes(tmp_path)
    assert sizes["apart.safetensors"] == sizes["joined.safetensors"]
    apart, joined = (load_file(tmp_path / f"{name}.safetensors") for name in ("apart", "joined"))
    assert apart.keys() == joined.keys()
    assert all(torch.equal(apart[name], joined[name]) for name in apart)


def test_a_state_dict_loads_in_place() -> None:
    model, processor = tiny_model("qwen2", "lal")
    other, _ = tiny_model("qwen2", "lal", seed=3)
    inputs = asked(processor)
    decoder = Decoder(model, join=True)
    greedy(model, **inputs, max_new_tokens=8, decoder=decoder)
    at = [parameter.data_ptr() for parameter in model.parameters()]
    model.load_state_dict(other.state_dict())
    assert at == [parameter.data_ptr() for parameter in model.parameters()]
    expected = other.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=8, decoder=decoder), expected)
    plain, _ = tiny_model("qwen2", "lal", seed=4)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.generate(**inputs, max_new_tokens=8, do_sample=False), expected)


def test_a_copy_stands_alone() -> None:
    model, processor = tiny_model("qwen2", "lal")
    inputs = asked(processor)
    joined_decoder(model)
    other = copy.deepcopy(model)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert not storages(other.parameters()).keys() & storages(model.parameters()).keys()
    assert torch.equal(greedy(other, **inputs, max_new_tokens=6, decoder=Decoder(other, join=True)), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), expected)


# ---- what is left alone ---------------------------------------------------------------------------------------------


def _adapted(model: Any) -> None:
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["layers.0.self_attn.q_proj"]), model.language_model)


class Halved(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) / 2


def _subclass(model: Any) -> None:
    old = attention_of(model).v_proj
    attention_of(model).v_proj = Halved(old.in_features, old.out_features, bias=False)


def _forward(model: Any) -> None:
    part = attention_of(model).k_proj
    part.forward = lambda inputs: 2 * F.linear(inputs, part.weight)


def _tied(model: Any) -> None:
    attention_of(model).q_proj.weight = model.language_model.model.layers[1].self_attn.o_proj.weight


def _storage_shared(model: Any) -> None:
    attention_of(model).q_proj.weight.data = model.language_model.model.layers[1].self_attn.o_proj.weight.data


def _tied_within(model: Any) -> None:
    attention_of(model).v_proj.weight = attention_of(model).k_proj.weight


def _one_bias(model: Any) -> None:
    attention_of(model).v_proj.bias = nn.Parameter(torch.ones(16))


def _one_dtype(model: Any) -> None:
    attention_of(model).v_proj.double()


class Wrapped(Tensor):
    pass


def _wrapped(model: Any) -> None:
    part = attention_of(model).k_proj
    part.weight = nn.Parameter(part.weight.detach().as_subclass(Wrapped))


LEFT_ALONE: dict[str, Callable[[Any], Any]] = {
    "adapter": _adapted,
    "subclass": _subclass,
    "forward": _forward,
    "hook": lambda model: attention_of(model).k_proj.register_forward_hook(lambda part, inputs, output: 2 * output),
    "pre-hook": lambda model: attention_of(model).k_proj.register_forward_pre_hook(lambda part, inputs: (2 * inputs[0],)),
    "parametrization": lambda model: weight_norm(attention_of(model).q_proj),
    "tied": _tied,
    "tied within": _tied_within,
    "shared storage": _storage_shared,
    "one bias": _one_bias,
    "one dtype": _one_dtype,
    "tensor subclass": _wrapped,
    "another width": lambda model: setattr(attention_of(model), "v_proj", nn.Linear(8, 16, bias=False)),
    "meta": lambda model: attention_of(model).to("meta"),
}


@pytest.mark.parametrize("what", LEFT_ALONE)
def test_a_group_with_something_unusual_is_left_alone(what: str) -> None:
    model, processor = tiny_model("llama", "lal")
    LEFT_ALONE[what](model)
    model.eval()
    layer = attention_of(model)
    members = {id(part) for part in layer.modules()}
    groups = joinable(model.language_model, model)
    assert len(groups) == 7
    assert not any(id(part) in members for maps in groups for part in maps)
    if what in ("one dtype", "another width", "meta"):
        return
    at = [parameter.data_ptr() for parameter in layer.parameters()]
    inputs = asked(processor)
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=Decoder(model, join=True)), expected)
    assert at == [parameter.data_ptr() for parameter in layer.parameters()]


def test_a_weight_tied_after_joining_stays_tied() -> None:
    model, _ = tiny_model("llama", "lal")
    joined_decoder(model)
    other = model.language_model.model.layers[1].self_attn.o_proj
    other.weight.data = attention_of(model).q_proj.weight.data
    assert len(joined_decoder(model)._joined) == 8
    assert other.weight.data_ptr() == attention_of(model).q_proj.weight.data_ptr()


def test_adapters_of_a_model_leave_their_groups_alone() -> None:
    model, processor = tiny_model("llama", "lal", adapter={**ADAPTER, "target": ["q_proj"]})
    inputs = asked(processor)
    assert [len(maps) for maps in joinable(model.language_model, model)] == [2] * 4
    expected = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=Decoder(model, join=True)), expected)


def test_a_sharded_models_maps_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama", "lal")
    monkeypatch.setattr("pal_audio.model.decoder.FSDPModule", type(model))
    assert joined_decoder(model)._joined == []


def test_a_bias_that_is_replaced_is_seen() -> None:
    model, processor = tiny_model("qwen2", "lal")
    inputs, decoder = asked(processor), Decoder(model, join=True)
    greedy(model, **inputs, max_new_tokens=6, decoder=decoder)
    torch.manual_seed(1)
    biases = {name: 3 * torch.randn_like(value) for name, value in model.state_dict().items() if name.endswith("_proj.bias")}
    model.load_state_dict(biases, strict=False, assign=True)
    expected = greedy(model, **inputs, max_new_tokens=6, decoder=Decoder(model, join=False))
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=decoder), expected)
    for layer in model.language_model.model.layers:
        layer.self_attn.q_proj.bias = layer.self_attn.k_proj.bias = layer.self_attn.v_proj.bias = None
    expected = greedy(model, **inputs, max_new_tokens=6, decoder=Decoder(model, join=False))
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=decoder), expected)


def test_a_forward_that_a_map_gets_later_is_called_and_stays() -> None:
    model, processor = tiny_model("qwen2", "lal")
    inputs, decoder = asked(processor), Decoder(model, join=True)
    greedy(model, **inputs, max_new_tokens=6, decoder=decoder)
    attention = attention_of(model)
    own = attention.v_proj.forward
    attention.v_proj.forward = lambda inputs: -2 * own(inputs)
    expected = greedy(model, **inputs, max_new_tokens=6, decoder=Decoder(model, join=False))
    assert torch.equal(greedy(model, **inputs, max_new_tokens=6, decoder=decoder), expected)
    assert "forward" in vars(attention.v_proj)
    assert "forward" not in vars(attention.q_proj)


def test_weights_that_processes_share_stay_where_they_are() -> None:
    model, _ = tiny_model("llama", "lal")
    model.share_memory()
    assert not joinable(model.language_model, model)
