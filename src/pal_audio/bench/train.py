"""`pal bench train`: time and memory of training steps, every integration in one run.

A step is forward, backward and an AdamW step over one batch that lies on the device.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pal_audio.bench import measure, models
from pal_audio.bench.case import Case
from pal_audio.bench.estimate import FLOOR, Card, Way, step_seconds
from pal_audio.bench.store import Row
from pal_audio.integration import cost
from pal_audio.model import PalForConditionalGeneration, compiling

COMPARED_VALUES = ["step_s", "flops", "peak_bytes", "rest_bytes"]
LEARNING_RATE = 1e-6  # small: random weights must not run away in many steps over one batch


def measure_case(case: Case, device: torch.device, steps: int, warmup: int, rates: dict[str, float]) -> Row:
    """One row.

    Args:
        case: its settings.
        device: where it runs.
        steps, warmup: measured steps, and steps before them (at least one); compilation falls into the latter.
        rates: "matrix_flops" and "bandwidth_bytes" of this device, measured in this run.
    """
    model = models.build(case, device)
    models.training_mode(case, model)
    batch = models.make_batch(case, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, update = adamw(case, trained, device)
    compute = compiled_loss(case, model, batch)
    loss = compute()
    first_loss = float(loss.detach())  # at once: CUDA graphs of `compile_mode: reduce-overhead` write over their outputs
    loss.backward()
    gradients = measure.gradients_bytes(model)
    update()
    optimizer.zero_grad(set_to_none=True)

    def step() -> None:
        compute().backward()
        update()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(warmup - 1):
        step()
    measure.reset_peak(device)
    times = measure.timed(step, steps, device)
    peak = None if case.setup.replays_graphs else measure.peak_bytes(device)
    row = memory_row(peak, measure.weights_bytes(model), gradients, measure.optimizer_bytes(optimizer))
    work, way = case.work(), Way(case.setup.precision, case.setup.compile != "none")
    flops = cost.step_flops(case.llm, work)
    card = Card(rates["matrix_flops"], rates["bandwidth_bytes"], float("inf"))
    return row | {
        "compared": COMPARED_VALUES,
        "step_s": times.median_s,
        "times": asdict(times),
        "tokens_per_s": case.batch * (case.text_tokens + case.audio_tokens) / times.median_s,
        "flops": flops,
        "achieved_flops": flops / times.median_s,
        "matrix_share": flops / times.median_s / rates["matrix_flops"],
        "floor_s": step_seconds(case.llm, work, way, card, FLOOR),
        "rates": rates,
        "first_loss": first_loss,
    }


def adamw(case: Case, trained: list[torch.nn.Parameter], device: torch.device) -> tuple[torch.optim.Optimizer, Callable[[], Any]]:
    """The optimizer, and its step as the case says."""
    if case.setup.optimizer == "fused":
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
        return optimizer, optimizer.step
    rate = torch.tensor(LEARNING_RATE, device=device)  # a number would be part of the compiled code, and anew with each rate
    optimizer = torch.optim.AdamW(trained, lr=rate, foreach=True, capturable=True)
    return optimizer, torch.compile(optimizer.step)


def compiled_loss(case: Case, model: PalForConditionalGeneration, batch: models.Batch) -> Callable[[], Tensor]:
    """The loss of the batch, compiled as the case says."""
    compute = models.loss_function(case, model, batch)
    mode = None if case.setup.compile_mode == "default" else case.setup.compile_mode
    if case.setup.compile == "model":
        compiling.enable(model, mode)
    elif case.setup.compile == "step":
        return torch.compile(compute, mode=mode)
    return compute


def memory_row(peak: int | None, weights: int, gradients: int = 0, optimizer: int = 0) -> dict[str, Any]:
    """The parts of a peak in bytes; the rest (activations and buffers) and the peak are None where it is not measured."""
    rest = None if peak is None else peak - weights - gradients - optimizer
    return {
        "peak_bytes": peak,
        "weights_bytes": weights,
        "gradients_bytes": gradients,
        "optimizer_bytes": optimizer,
        "rest_bytes": rest,
    }
