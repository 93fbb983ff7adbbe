"""How a stage's module is spread over processes: a whole copy in each (DDP), or a share of each tensor (FSDP2).

    what steps                   DDP, one process: the objective's module itself          FSDP2: a sharded copy of it
    a checkpoint, the end        nothing to do                                            `gather` brings whole tensors back

So checkpoints, and all that comes after a stage, see a plain module and its optimizer, however it was trained.
"""

import copy
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pal_audio.errors import PalError
from pal_audio.integration.key_values import find_layers
from pal_audio.training.processes import Processes

Parallel = Literal["ddp", "fsdp"]


class Spread(Protocol):
    """A module that steps, in this process's way.

    Attributes:
        module: to be called.
        optimizer: of its parameters; rates are set in its groups.
    """

    module: nn.Module
    optimizer: Any

    def part(self, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one part of a step."""
        ...

    def gather(self, keep: bool) -> None:
        """Bring trained tensors and moments into the plain module and optimizer, where `keep`. All processes call it."""
        ...


def accelerator_for(precision: str) -> Accelerator:
    """accelerate's face of device, autocast and DDP.

    A layer that no loss reaches may train (an encoder's last one where `encoder_layers` ends before it), so DDP looks for
    unused parameters.
    """
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    options = DistributedDataParallelKwargs(find_unused_parameters=True)
    AcceleratorState._reset_state()  # or it keeps the precision of the first run in this program
    return Accelerator(mixed_precision="bf16" if precision == "bfloat16" else "no", kwargs_handlers=[options])


def spread(
    parallel: Parallel, module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, everyone: Processes
) -> Spread:
    """Spread a module over the processes; with one process it is left whole.

    Args:
        parallel: "ddp" or "fsdp".
        module: plain; on the accelerator's device for "ddp", anywhere for "fsdp".
        optimizer: of its parameters, with what moments it has.
        accelerator: see `accelerator_for`.
        everyone: the processes.

    Raises:
        PalError: a compiled module is to be sharded.
    """
    if parallel == "fsdp" and everyone.num > 1:
        return Shards(module, optimizer, accelerator, everyone)
    return Whole(module, optimizer, accelerator)


class Whole:
    """The whole module in every process, gradients averaged by DDP; with one process nothing is added."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        self.module, self.optimizer = accelerator.prepare(module, optimizer)
        self._accelerator = accelerator

    def part(self, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if is_last else self._accelerator.no_sync(self.module)

    def gather(self, keep: bool) -> None:
        pass


class Shards:
    """A copy of the module whose tensors are shared out by FSDP2: each decoder layer is a unit, all the rest is another.

    The rest holds encoders, connectors, embeddings and P_l, whole in every process while a step runs: P_l is called inside the
    layers, and an encoder may run any number of times a step, where a unit would wait for the other processes. Gradients are
    reduced after every part of a step, since kept whole they would take what sharding saves.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, everyone: Processes
    ) -> None:
        if any(part._compiled_call_impl is not None for part in module.modules()):
            raise PalError("`compile: true` does not go with `parallel: fsdp` yet; take one of them out")
        self._plain, self._plain_optimizer, self._accelerator = module, optimizer, accelerator
        self.module = copy.deepcopy(module)
        for parameter in self.module.parameters():  # FSDP2 takes neither scalars nor channels last
            parameter.data = parameter.detach().contiguous().view(parameter.shape or (1,))
        low = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        # Autocast casts inputs; FSDP2 would cast them by copying what they lie in, and audio would reach the copy alone.
        policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(accelerator.device.type, (everyone.num,))
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
        llm: Any = getattr(self.module, "language_model", self.module)
        for layer in find_layers(llm) if hasattr(llm, "get_decoder") else ():
            fully_shard(layer, **options)
        fully_shard(self.module, **options)
        names = {parameter: name for name, parameter in module.named_parameters()}
        sharded = dict(self.module.named_parameters())
        groups = [
            {**group, "params": [sharded[names[parameter]] for parameter in group["params"]]} for group in optimizer.param_groups
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        for plain, shard in self._trained():
            for key, value in optimizer.state.get(plain, {}).items():
                self.optimizer.state[shard][key] = value.to(shard.device) if key == "step" else _share(value, shard)

    def part(self, is_last: bool) -> AbstractContextManager[Any]:
        return self._accelerator.autocast()  # type: ignore[no-any-return]

    @torch.no_grad()
    def gather(self, keep: bool) -> None:
        self.module.reshard()  # type: ignore[operator]  # a forward without a backward leaves the outer unit whole
        for plain, shard in zip(self._plain.parameters(), self.module.parameters(), strict=True):
            _bring(plain, shard, keep)
        for plain_buffer, buffer in zip(self._plain.buffers(), self.module.buffers(), strict=True):
            plain_buffer.copy_(buffer)
        for plain, shard in self._trained():
            for key, value in self.optimizer.state.get(shard, {}).items():
                room = torch.empty_like(value if key == "step" else plain, device="cpu")
                _bring(room, value, keep)
                if keep:
                    self._plain_optimizer.state[plain][key] = room

    def _trained(self) -> list[tuple[Any, Any]]:
        """Each trained parameter of the plain module and its share in the copy."""
        pairs = zip(self._plain_optimizer.param_groups, self.optimizer.param_groups, strict=True)
        return [pair for plain, shard in pairs for pair in zip(plain["params"], shard["params"], strict=True)]


def _share(value: Tensor, shard: DTensor) -> Tensor:
    """A moment, shared out as its parameter is."""
    whole = value.to(shard.device).contiguous().view(shard.shape)
    return distribute_tensor(whole, shard.device_mesh, shard.placements)


def _bring(room: Tensor, value: Tensor, keep: bool) -> None:
    """Fill `room` with a whole tensor; every process takes part, whether it keeps the result or not."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    if keep:
        room.copy_(whole.view_as(room))
