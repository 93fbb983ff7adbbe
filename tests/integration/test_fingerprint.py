"""The fingerprint that is asked for with every question equals one that looks at everything anew, whatever was changed."""

import copy
import hashlib
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from pal_audio.integration.fingerprint import Fingerprint, fingerprint


class Adapted(nn.Linear):
    """A layer with the state that peft's layers keep beside their parameters."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.disable_adapters = False
        self.scaling = {"default": 2.0}


def modules() -> list[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    return [
        ("ears", nn.Sequential(nn.Conv1d(2, 600, 3), nn.Sequential(nn.Linear(600, 4), nn.LayerNorm(4)))),
        ("", nn.ModuleDict({"adapted": Adapted(), "plain": nn.Linear(4, 4)})),
    ]


def in_data(parts: nn.ModuleDict) -> None:
    parts["plain"].weight.data[1, 1] += 1.0


def by_fused_optimizer(parts: nn.ModuleDict) -> None:
    optimizer = torch.optim.AdamW(parts["plain"].parameters(), lr=1e-4, fused=True)
    parts["plain"](torch.ones(1, 4)).sum().backward()
    optimizer.step()


def another_tensor(parts: nn.ModuleDict) -> None:
    parts["plain"].weight.data = parts["plain"].weight.data + 1.0


def another_parameter(parts: nn.ModuleDict) -> None:
    parts["plain"].weight = nn.Parameter(parts["plain"].weight.detach() + 1.0)


def another_shape(parts: nn.ModuleDict) -> None:
    parts["plain"].weight.data = parts["plain"].weight.data.view(2, 8)


def transposed(parts: nn.ModuleDict) -> None:
    parts["plain"].weight.data = parts["plain"].weight.data.t()


def another_dtype(parts: nn.ModuleDict) -> None:
    parts.to(torch.bfloat16)


def another_module(parts: nn.ModuleDict) -> None:
    torch.manual_seed(1)
    parts["plain"] = nn.Linear(4, 4)


def one_more_module(parts: nn.ModuleDict) -> None:
    parts["more"] = nn.Linear(2, 2)


def one_less_module(parts: nn.ModuleDict) -> None:
    del parts["plain"]


def one_more_parameter(parts: nn.ModuleDict) -> None:
    parts["plain"].register_parameter("more", nn.Parameter(torch.ones(2)))


def another_name(parts: nn.ModuleDict) -> None:
    parts["renamed"] = parts.pop("plain")


def adapter_off(parts: nn.ModuleDict) -> None:
    parts["adapted"].disable_adapters = True


def adapter_weaker(parts: nn.ModuleDict) -> None:
    parts["adapted"].scaling["default"] = 1.0


CHANGES = [
    in_data, by_fused_optimizer, another_tensor, another_parameter, another_shape, transposed, another_dtype, another_module,
    one_more_module, one_less_module, one_more_parameter, another_name, adapter_off, adapter_weaker,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change: Callable[[nn.ModuleDict], None]) -> None:
    parts, kept = modules(), Fingerprint()
    before = kept(parts, {"a": 1})
    assert before == kept(parts, {"a": 1}) == Fingerprint()(modules(), {"a": 1})
    assert isinstance(parts[1][1], nn.ModuleDict)
    change(parts[1][1])
    assert kept(parts, {"a": 1}) == Fingerprint()(parts, {"a": 1}) != before


def test_modules_names_and_configuration_are_told_apart() -> None:
    parts, kept = modules(), Fingerprint()
    before = kept(parts, {"a": 1})
    assert kept(parts, {"a": 2}) != before
    assert kept(parts[::-1], {"a": 1}) != before
    assert kept(parts[:1], {"a": 1}) != before
    assert kept([("mouth", parts[0][1]), parts[1]], {"a": 1}) != before
    assert kept(modules(), {"a": 1}) == before  # others of equal weights are the same
    assert kept(parts, {"a": 1}) == before


def test_it_is_that_of_the_function() -> None:
    parts = [("", module) for _, module in modules()]
    assert Fingerprint()(parts, 3) == fingerprint([module for _, module in parts], 3)


def test_states_stand_before_the_names_of_their_own_module() -> None:
    """The order by which memories on disk were made."""
    parts = modules()
    digest = hashlib.sha256(b"3")
    for prefix, module in parts:
        for name, part in module.named_modules(prefix=prefix):
            if isinstance(part, Adapted):
                digest.update(f"{name}{[('disable_adapters', False), ('scaling', {'default': 2.0})]}".encode())
        for name, parameter in module.named_parameters(prefix=prefix):
            digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
    flat = [parameter.detach().flatten() for _, module in parts for parameter in module.parameters()]
    digest.update(torch.cat([values[:: max(1, len(values) // 256)][:256] for values in flat]).numpy().tobytes())
    assert Fingerprint()(parts, 3) == digest.hexdigest()[:32]


def test_threads_that_ask_at_once_are_told_the_same() -> None:
    parts = [("ears", nn.ModuleList(nn.Linear(4, 4) for _ in range(100)))]
    right, interval = Fingerprint()(parts, None), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            kept, together = Fingerprint(), threading.Barrier(4)
            with ThreadPoolExecutor(4) as pool:
                told = list(pool.map(lambda _: (together.wait(), kept(parts, None))[1], range(4)))  # noqa: B023
            assert told == [right] * 4
    finally:
        sys.setswitchinterval(interval)


def test_a_list_that_is_changed_and_a_copy_are_looked_at_anew() -> None:
    parts, kept = modules(), Fingerprint()
    before = kept(parts, None)
    parts.append(("more", nn.Linear(2, 2)))
    assert kept(parts, None) == Fingerprint()(parts, None) != before
    model = nn.Module()
    model.kept = copy.deepcopy(kept)  # type: ignore[assignment]
    assert pickle.loads(pickle.dumps(kept))(parts, None) == copy.deepcopy(model).kept(parts, None) == kept(parts, None)  # type: ignore[operator]


def test_samples_are_spread_over_the_whole_tensor() -> None:
    """One value in 14 of 3,600: any training step changes one of them, and so does a change of the last rows alone."""
    parts, kept = modules(), Fingerprint()
    weight = parts[0][1][0].weight  # type: ignore[index]
    before = kept(parts, None)
    with torch.no_grad():
        weight[-10:] += 1.0
    assert kept(parts, None) != before
