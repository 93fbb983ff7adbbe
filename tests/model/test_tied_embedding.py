"""The gradient of a tied embedding is that of torch, made without a second tensor of the weight's size."""

import contextlib
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pal_audio.model import compiling, modeling, tied_embedding
from pal_audio.model.tied_embedding import find_tied
from tests.model.test_packing import CONVERSATIONS, training_batch
from tests.tiny import tiny_model

TIED = {"tie_word_embeddings": True}
WEIGHT = "language_model.model.embed_tokens.weight"


class Made(TorchDispatchMode):
    """Names of operations that made a tensor of a shape, other than a view."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.names = shape, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(output):
            is_large = isinstance(tensor, Tensor) and tensor.numel() == self.shape.numel()
            if is_large and tensor.untyped_storage()._cdata not in given:
                self.names.append(str(func))
        return output


def tied_model(arm: str = "pal", family: str = "llama") -> tuple[Any, Any]:
    model, processor = tiny_model(family, arm, llm=TIED)
    model.train()
    model.adds_tied_gradient = True
    assert find_tied(model) is not None
    return model, processor


def gradients(model: Any, inputs: Any, **options: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(**inputs, use_cache=False, **options).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def by_torch(model: Any, inputs: Any, **options: Any) -> dict[str, Tensor]:
    with mock.patch.object(modeling, "find_tied", return_value=None):
        return gradients(model, inputs, **options)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("family", "arm"), [("llama", "plits"), ("llama", "pal"), ("llama", "flamingo"), ("granite", "lal"), ("gpt2", "lal")]
)
def test_gradients_are_torchs(family: str, arm: str, packed: bool) -> None:
    model, processor = tied_model(arm, family)
    inputs = training_batch(processor, CONVERSATIONS)
    with mock.patch.object(modeling, "find_tied", wraps=find_tied) as asked:
        found = gradients(model, inputs, packed=packed)
    assert asked.call_count == 1
    expected = by_torch(model, inputs, packed=packed)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "as before"


def test_no_second_tensor_of_the_weights_size_is_made() -> None:
    model, processor = tied_model()
    inputs = training_batch(processor, CONVERSATIONS)
    weight = model.get_input_embeddings().weight

    def made(compute: Any) -> list[str]:
        model.zero_grad()
        loss = model(**inputs, use_cache=False).loss
        with Made(weight.shape) as seen:
            loss.backward()
        return seen.names

    assert made(None) == ["aten.mm.default"]
    with mock.patch.object(modeling, "find_tied", return_value=None):
        assert len(made(None)) >= 3


def test_bfloat16_sums_equal_ids_in_float32() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    weight = nn.Parameter(torch.zeros(8, 4, dtype=torch.bfloat16))
    head, embedding = nn.Linear(4, 8, bias=False), nn.Embedding(8, 4)
    head.weight = embedding.weight = weight
    model = mock.Mock(get_output_embeddings=lambda: head, get_input_embeddings=lambda: embedding, language_model=head)
    tied = find_tied(model)
    assert tied is not None
    tied.embed(torch.full((1, 1000), 3)).sum().backward()
    assert weight.grad is not None
    assert weight.grad[3].tolist() == [1000.0] * 4  # 1000 is a number of bfloat16
    assert weight.grad.float().sum() == 4000


def test_rows_of_one_id_are_summed_by_torchs_kernel_for_embeddings() -> None:
    """One that goes through them one by one takes 11 ms for the slots of 16 clips of 1,024 tokens, which all have one id."""
    model, processor = tied_model("plits")
    inputs = training_batch(processor, CONVERSATIONS)
    loss = model(**inputs, use_cache=False).loss
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        loss.backward()
    (summed,) = (event for event in seen.events() if event.name == "aten::embedding_dense_backward")
    assert summed.input_shapes[0] == [inputs["input_ids"].numel(), model.get_input_embeddings().weight.shape[1]]
    assert not [event for event in seen.events() if event.name.startswith("aten::index_put")]


def test_steps_add_up_and_a_graph_serves_twice() -> None:
    model, processor = tied_model()
    inputs = training_batch(processor, CONVERSATIONS)
    once = by_torch(model, inputs)[WEIGHT]
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    loss.backward(retain_graph=True)
    loss.backward()
    model(**inputs, use_cache=False).loss.backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, 3 * once)


def test_asked_for_by_name_and_twice_differentiated() -> None:
    model, processor = tied_model("lal")
    inputs = training_batch(processor, CONVERSATIONS)
    weight = model.get_input_embeddings().weight
    found = []
    for ways in (find_tied, lambda _: None):
        with mock.patch.object(modeling, "find_tied", ways), sdpa_kernel(SDPBackend.MATH):
            loss = model(**inputs, use_cache=False).loss
        (first,) = torch.autograd.grad(loss, weight, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), weight)
        found.append((first.detach(), second))
    torch.testing.assert_close(*found)


def test_either_share_alone() -> None:
    """The lookup's, whose padding learns nothing, and the output layer's."""
    head, embedding = nn.Linear(4, 8, bias=False), nn.Embedding(8, 4, padding_idx=0)
    head.weight = embedding.weight
    model = mock.Mock(get_output_embeddings=lambda: head, get_input_embeddings=lambda: embedding, language_model=head)
    ids = torch.tensor([[0, 3, 3]])
    tied = find_tied(model)
    assert tied is not None
    tied.embed(ids).sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.sum(1).tolist() == [0, 0, 0, 8, 0, 0, 0, 0]
    embedding.weight.grad = None
    tied = find_tied(model)
    assert tied is not None
    with tied.as_head():
        head(tied.embed(ids).detach()).sum().backward()
    torch.testing.assert_close(embedding.weight.grad, embedding(ids).detach().sum(1).expand(8, 4))


@pytest.mark.parametrize(
    "case",
    [
        "untied",
        "frozen",
        "hook",
        "subclass",
        "other head",
        "head hook",
        "head forward",
        "handed out",
        "sharded LLM",
        "sharded whole",
        "max_norm",
        "sparse",
        "by frequency",
        "no_grad",
        "own_forward",
        "compiling",
    ],
)
def test_what_is_not_plain_goes_by_torch(case: str) -> None:
    model, _ = tiny_model("llama", "lal", llm={} if case == "untied" else TIED)
    llm = model.language_model
    embedding = llm.get_input_embeddings()
    if case == "frozen":
        embedding.weight.requires_grad_(False)
    elif case == "hook":
        embedding.register_forward_hook(lambda *_: None)
    elif case == "subclass":
        embedding.__class__ = type("Scaled", (nn.Embedding,), {})
    elif case == "other head":
        llm.get_output_embeddings().__class__ = type("Capped", (nn.Linear,), {})
    elif case == "head hook":
        llm.get_output_embeddings().register_forward_hook(lambda *_: None)
    elif case == "head forward":
        llm.get_output_embeddings().forward = llm.get_output_embeddings().forward
    elif case == "handed out":  # as FSDP does: a plain tensor in place of the parameter
        head = llm.get_output_embeddings()
        del head._parameters["weight"]
        vars(head)["weight"] = embedding.weight
    elif case.startswith("sharded"):
        sharded = model if case == "sharded whole" else llm
        sharded.__class__ = type("Sharded", (FSDPModule, type(sharded)), {})
    elif case == "max_norm":
        embedding.max_norm = 1.0
    elif case == "sparse":
        embedding.sparse = True
    elif case == "by frequency":
        embedding.scale_grad_by_freq = True
    elif case == "own_forward":
        embedding.forward = embedding.forward
    compiling = mock.patch.object(torch.compiler, "is_compiling", return_value=case == "compiling")
    with torch.set_grad_enabled(case != "no_grad"), compiling:
        assert find_tied(model) is None


def test_the_weight_is_back_after_an_error() -> None:
    model, processor = tied_model()
    inputs = training_batch(processor, CONVERSATIONS)
    head = model.get_output_embeddings()
    failing = mock.patch.object(type(model.language_model), "forward", side_effect=RuntimeError("out of memory"))
    with failing, pytest.raises(RuntimeError, match="out of memory"):
        model(**inputs, use_cache=False)
    assert head.weight is model.get_input_embeddings().weight
    assert [name for name, _ in head.named_parameters()] == ["weight"]


def test_only_steps_that_are_compiled_by_parts_add_it() -> None:
    """What is in place is for weights that nothing else hands out: not for function transforms, or other code's forwards."""
    model, processor = tied_model()
    inputs = training_batch(processor, CONVERSATIONS)
    model.adds_tied_gradient = False
    with mock.patch.object(modeling, "find_tied") as asked:
        gradients(model, inputs)
    assert not asked.called
    compiling.enable(model)
    assert model.adds_tied_gradient
    compiling.disable(model)
    assert not model.adds_tied_gradient


def test_a_backward_pass_that_ended_in_an_error_leaves_nothing() -> None:
    model, processor = tied_model("plits")
    inputs = training_batch(processor, CONVERSATIONS)
    expected = gradients(model, inputs)[WEIGHT]
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    fails = [True]
    with mock.patch.object(tied_embedding._TwoReadings, "backward", wraps=tied_embedding._TwoReadings.backward) as backward:
        backward.side_effect = lambda *_: (_ for _ in ()).throw(ValueError("a fault")) if fails.pop() else None
        with contextlib.suppress(ValueError, RuntimeError):
            loss.backward(retain_graph=True)
    model.zero_grad()
    loss.backward()
    torch.testing.assert_close(model.get_input_embeddings().weight.grad, expected)


def test_forwards_of_two_threads_leave_the_parameter() -> None:
    """The first to enter is the first to leave."""
    model, _ = tied_model()
    parameter = model.get_input_embeddings().weight
    one, other = find_tied(model), find_tied(model)
    assert one is not None
    assert other is not None
    first, second = one.as_head(), other.as_head()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert model.get_output_embeddings()._parameters["weight"] is parameter


@pytest.mark.parametrize("ids", [[7] * 500 + [3, 9, 3], [5], []], ids=["slots", "one", "none"])
def test_rows_of_equal_ids_are_not_added_one_by_one(ids: list[int]) -> None:
    """All slots of a batch have one id; additions to one row wait for each other on a GPU."""
    ids_N = torch.tensor(ids, dtype=torch.long)
    rows_ND = torch.randn(len(ids_N), 4)
    places_N, sums_ND = tied_embedding._summed(ids_N, rows_ND, 600)
    assert places_N.bincount(minlength=600).max() <= 3  # an id's sum, and zeros of two more at most
    found, expected = (torch.zeros(600, 4).index_add_(0, where, what) for where, what in ((places_N, sums_ND), (ids_N, rows_ND)))
    torch.testing.assert_close(found, expected)
