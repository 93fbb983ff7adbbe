"""The cost model against what torch counts and what tensors hold, on tiny models of every integration."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pal_audio.bench import infer, measure, models, shapes
from pal_audio.bench.case import Case, Setup
from pal_audio.integration import cost

ARMS = ("text", "plits", "lal", "pal", "flamingo")
CPU = torch.device("cpu")


def make(arm: str, encoder: str = "tiny-frames", llm: str = "tiny-llama", **options: Any) -> Case:
    setup = {name: options.pop(name) for name in ("frozen_llm", "checkpointing", "logits", "positions") if name in options}
    sizes = {"batch": 3, "audio_tokens": 10, "text_tokens": 12, "layers": "from:1", "summary": 3} | options
    return Case(setup=Setup(llm=llm, encoder=encoder, precision="float32", **setup), integration=arm, **sizes)


def count(case: Case) -> tuple[int, int, torch.nn.Module]:
    """Operations that torch counts, forward and backward, with the plain attention kernel, which it sees into."""
    model = models.build(case, CPU)
    models.training_mode(case, model)
    compute = models.loss_function(case, model, models.make_batch(case, model))
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = compute()
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops(), model


VARIANTS: list[dict[str, Any]] = [
    {},
    {"frozen_llm": True, "projector": "low_rank:4"},
    {"checkpointing": True, "projector": "shared"},
    {"encoder": "tiny-whisper", "llm": "tiny-qwen2", "layers": "all", "logits": "model"},
    {"encoder": "conv", "frozen_llm": True},
]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_operations_and_parameters_are_those_of_the_model(arm: str, options: dict[str, Any]) -> None:
    case = make(arm, **options)
    forward, backward, model = count(case)
    work = case.work()
    assert sum(cost.forward_flops(case.llm, work).values()) == forward
    assert sum(cost.backward_flops(case.llm, work).values()) == backward
    assert cost.num_parameters(case.llm, work) == sum(parameter.numel() for parameter in model.parameters())
    assert cost.trained_parameters(case.llm, work) == sum(p.numel() for p in model.parameters() if p.grad is not None)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert None not in gradients, "the optimizer would keep what never learns"


@pytest.mark.parametrize("arm", ARMS)
def test_bytes_are_those_of_the_tensors(arm: str) -> None:
    case = make(arm)
    work = cost.Work(**{**vars(case.work()), "element_bytes": 4})
    model = models.build(case, CPU).eval()
    inputs = models.make_batch(case, model).inputs
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        memory = infer.make_memory(case, model, inputs, 0)
        cache = infer.first_token(model, text, memory)
    assert cost.kv_bytes(case.llm, work) == infer.cache_bytes(cache)
    assert cost.memory_bytes(case.llm, work) == (0 if memory is None else memory.num_bytes)
    assert 4 * cost.num_parameters(case.llm, work) == sum(p.numel() * p.element_size() for p in model.parameters())
    assert measure.weights_bytes(model) >= 4 * cost.num_parameters(case.llm, work)


def test_repeated_heads_take_the_ratio_of_heads() -> None:
    case = make("lal")
    work = case.work()
    one_layer = 2 * case.llm.kv_size * (work.row_tokens + work.keys) * work.batch * work.element_bytes
    assert cost.expanded_bytes(case.llm, work) == one_layer * case.llm.num_heads // case.llm.num_kv_heads


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("llama-3.2-1b", 1235.8),
        ("llama-3.2-3b", 3212.7),
        ("qwen2.5-0.5b", 494.0),
        ("qwen2.5-1.5b", 1543.7),
        ("qwen2.5-7b", 7615.6),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    """As the models' pages state them: 1.24, 3.21, 0.49, 1.54 and 7.61 billion."""
    assert shapes.llm_shape(shapes.LLMS[name]).num_parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_bound_at_the_size_of_the_tables() -> None:
    """PLITS against LAL at 16 x 1024 by operations alone."""
    plits, lal = (
        Case(setup=Setup(logits="model"), integration=name, batch=16, audio_tokens=1024).work() for name in ("plits", "lal")
    )
    llm = shapes.llm_shape(shapes.LLMS["llama-3.2-1b"])
    equal = [cost.Work(**{**vars(work), "logits": 64}) for work in (plits, lal)]
    assert cost.step_flops(llm, equal[0]) / cost.step_flops(llm, equal[1]) == pytest.approx(5.9, abs=0.05)
