"""Every fast path beside the eager reference, on the device that is there: loss, gradients, logits and greedy tokens.

    python benchmarks/equality.py --llm tiny-llama --out results/equality        seconds on a CPU without --compiled
    python benchmarks/equality.py --llm llama-3.2-1b --compiled --out results/equality

The reference of each integration is unpacked, by transformers' eager attention over joined keys, in float32 (TF32 off). A fast
path has the settings of its row; all have the same weights and batch. A difference is the norm of what differs over that of
the reference, the worst over all tensors for gradients. In bfloat16 the reference stays in float32, and bfloat16's own eager row
says what its rounding alone makes. A fast path fails where its float32 difference is above `--tolerance`, its bfloat16
difference above three times eager's (of the worst tensor, or of all gradients as one vector: a scalar whose terms cancel is noise
in bfloat16 and hides the others), or its tokens are not those of `generate`.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pal_audio.bench import infer, measure, models, train
from pal_audio.bench.case import Case, Setup
from pal_audio.bench.run import find_device, guarded
from pal_audio.config import parse_config
from pal_audio.errors import PalError
from pal_audio.integration.training_attention import HEAD_SIZES
from pal_audio.model.decoder import Decoder
from pal_audio.model.decoding import greedy
from pal_audio.model.prefill import WAYS

REFERENCE: dict[str, Any] = {"kernel": "eager", "packed": False, "precision": "float32"}
FAST: dict[str, dict[str, Any]] = {
    "sdpa": {"kernel": "sdpa"},
    "sdpa, packed": {"kernel": "sdpa", "packed": True},
    "checkpointing": {"kernel": "sdpa", "packed": True, "checkpointing": True},
    "recompute_audio light": {"kernel": "sdpa", "packed": True, "recompute_audio": "light"},
    "recompute_audio full": {"kernel": "sdpa", "packed": True, "recompute_audio": "full"},
    "composed": {"kernel": "sdpa", "packed": True, "projections": "composed"},
}
JOINED_AUDIO = {"kernel": "sdpa", "packed": True, "audio_kernel": "sdpa"}
COMPILED: dict[str, dict[str, Any]] = {
    "compiled": {"kernel": "sdpa", "packed": True, "compile": "model"},
    "compiled, graphs": {"kernel": "sdpa", "packed": True, "compile": "model", "compile_mode": "reduce-overhead"},
    "compiled, light": {"kernel": "sdpa", "packed": True, "compile": "model", "recompute_audio": "light"},
    "compiled, apart": {"kernel": "sdpa", "packed": True, "compile": "model", "projections": "apart"},
    "compiled, composed": {"kernel": "sdpa", "packed": True, "compile": "model", "projections": "composed"},
}
Result = dict[str, Any]
NUM_WORST = 5  # tensors that a row names


@dataclass(frozen=True)
class Computed:
    """What one way computes.

    Attributes:
        loss: of the batch.
        gradients: by name of parameter, on the CPU, float32.
    """

    loss: float
    gradients: dict[str, Tensor]


def compute(case: Case, device: torch.device) -> Computed:
    """Loss and gradients of a case; of the third step where graphs are replayed, which two steps record."""
    model = models.build(case, device)
    fill_low_rank(model)
    models.training_mode(case, model)
    loss_of = train.compiled_loss(case, model, models.make_batch(case, model))
    for _ in range(3 if case.setup.replays_graphs else 1):
        model.zero_grad(set_to_none=True)
        loss = loss_of()
        value = float(loss.detach())
        loss.backward()
    gradients = {name: parameter.grad.float().cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Computed(value, gradients)


def fill_low_rank(model: nn.Module) -> None:
    """Low-rank maps start at zero, where most of what they compute is zero too."""
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if name.endswith(".up.weight"):
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[1] ** -0.5)


def ways_of(case: Case, compiled: bool, device: torch.device) -> dict[str, dict[str, Any]]:
    """The fast paths of one integration.

    On a GPU packed steps with LAL attend by the kernel, or their row is an error; and by SDPA in rows of their own.
    """
    ways = FAST | (COMPILED if compiled else {})
    if case.integration not in ("lal", "pal"):
        return {name: way for name, way in ways.items() if not {"recompute_audio", "projections"} & way.keys()}
    if device.type != "cuda" or case.llm.head_dim not in HEAD_SIZES:
        return ways
    by_kernel = {name: way | ({"audio_kernel": "triton"} if way.get("packed") else {}) for name, way in ways.items()}
    joined = {"joined audio": JOINED_AUDIO}
    return by_kernel | joined | ({"joined audio, compiled": JOINED_AUDIO | {"compile": "model"}} if compiled else {})


def difference(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over that of the second; infinite where there is a number that is none."""
    found = float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-12))
    return math.inf if math.isnan(found) else found


def training_rows(base: Case, ways: dict[str, dict[str, Any]], device: torch.device, precisions: list[str]) -> Iterator[Result]:
    """Rows of one integration."""
    reference = compute(varied(base, {}), device)
    for precision in precisions:
        own, eager = {} if precision == "float32" else {"eager": {"kernel": "eager"}}, None
        for name, settings in {**own, **ways}.items():
            case = varied(base, settings | {"precision": precision})
            row: Result = {"integration": base.integration, "precision": precision, "way": name}
            row |= guarded(lambda case=case: compared(compute(case, device), reference), device)  # type: ignore[misc]
            eager = row if name == "eager" else eager
            if eager and "gradient" in eager and "gradient" in row:
                row["of_eager"] = max(row[part] / eager[part] for part in ("gradient", "all_gradients"))
            yield row


def compared(found: Computed, reference: Computed) -> Result:
    """By how much one way differs."""
    assert found.gradients.keys() == reference.gradients.keys()
    each = {key: difference(found.gradients[key], reference.gradients[key]) for key in reference.gradients}
    worst = sorted(each, key=lambda key: -each[key])[:NUM_WORST]
    loss = abs(found.loss - reference.loss) / abs(reference.loss)
    as_one = (torch.cat([way.gradients[key].flatten() for key in each]) for way in (found, reference))
    return {
        "loss": loss,
        "gradient": each[worst[0]],
        "all_gradients": difference(*as_one),
        "worst": {key: each[key] for key in worst},
        "num_gradients": len(each),
    }


def varied(base: Case, settings: dict[str, Any]) -> Case:
    return base.model_copy(update={"setup": Setup.model_validate(base.setup.model_dump() | REFERENCE | settings)})


def generation_rows(base: Case, device: torch.device, new_tokens: int, with_prefills: bool) -> Iterator[Result]:
    """Greedy tokens of the fixed-size loop beside `generate`'s, and a memory that all rows share beside one for each row.

    With `with_prefills` also where prompts are captured, and compiled.
    """
    case = varied(base, {"kernel": "sdpa"})
    model = models.build(case, device).eval()
    inputs = models.make_batch(case, model, 1).inputs
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        memory = infer.make_memory(case, model, inputs, 0)
        asked = {name: tensor.to(device) for name, tensor in text.items()}
        if memory is None:
            held: dict[str, Any] = {"one for each row": None}
        else:
            copies = memory.concatenate([memory] * case.batch)
            held = {"one for each row": copies, "shared": memory.share(case.batch)}
        expected = prefill = None
        for name, audio in held.items():
            options: dict[str, Any] = {} if audio is None else {"audio_memory": audio}
            logits = model(**asked, **options).logits[:, -1].float().cpu()
            tokens = model.generate(
                **asked, **options, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0
            )[:, -new_tokens:]
            expected, prefill = tokens if expected is None else expected, logits if prefill is None else prefill
            for prefill_way in WAYS if with_prefills else WAYS[:1]:
                what = "greedy" if prefill_way == "plain" else f"greedy, {prefill_way} prefill"
                row: Result = {"integration": base.integration, "precision": "float32", "way": f"{what}, memory {name}"}
                decoder = Decoder(model, prefill=prefill_way)
                ask = partial(greedy, model, **asked, **options, max_new_tokens=new_tokens, decoder=decoder)
                found = partial(answered, ask, decoder, tokens, expected, difference(logits, prefill))
                yield row | guarded(found, device)
    measure.clean(device)


def answered(ask: Callable[[], Tensor], decoder: Decoder, tokens: Tensor, expected: Tensor, logits: float) -> Result:
    """Whether a decoder's tokens are those expected. Of three questions the second captures its prompt, the third replays it.

    Raises:
        RuntimeError: a prompt went another way than asked.
    """
    asked = []
    for _ in range(3):
        asked.append(ask()[:, -expected.shape[1] :].to(expected.device))
        if decoder.why_plain_prefill is not None:
            raise RuntimeError(f"prefill {decoder.prefill}: {decoder.why_plain_prefill}")
    same = all(torch.equal(one, expected) for one in (tokens, *asked))
    return {"logits": logits, "same_tokens": same, "num_tokens": int(expected.numel())}


BF16_FACTOR = 3.0  # rounding differs by way; of these rows none has had twice what eager had


def failed(row: Result, tolerance: float) -> bool:
    """Whether a row is no equality. In bfloat16: by more than `BF16_FACTOR` times what the eager way differs."""
    if row["error"] is not None:
        return True
    if "same_tokens" in row:
        return not row["same_tokens"] or row["logits"] > tolerance
    if row["precision"] == "float32":
        return bool(max(row["loss"], row["gradient"]) > tolerance)
    return "of_eager" in row and not row["of_eager"] <= BF16_FACTOR


def main(arguments: list[str] | None = None) -> list[Result]:
    """Compare, print a table, write OUT/equality.json.

    Raises:
        SystemExit: status 1 where a fast path is not equal.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", default="tiny-llama")
    parser.add_argument("--encoder", default="frames")
    parser.add_argument("--integrations", default="plits,lal,pal,flamingo")
    parser.add_argument("--projector", default="per_layer", help="of lal and pal, as in `pal bench train`")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--audio-tokens", type=int, default=300)
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--precisions", default="float32,bf16")
    parser.add_argument("--compiled", action="store_true", help="compiled ways too")
    parser.add_argument("--ways", default="", help="those alone whose name has this in it, and no generation")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = find_device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    header = {"hardware": measure.hardware(device), "date": measure.now(), "tolerance": options.tolerance}
    rows: list[Result] = []
    for integration in options.integrations.split(","):
        setup = parse_config(TypeAdapter(Setup), {"llm": options.llm, "encoder": options.encoder}, "benchmark")
        case = Case(
            setup=setup, integration=integration, batch=options.batch, audio_tokens=options.audio_tokens,
            text_tokens=options.text_tokens, projector=options.projector,
        )  # fmt: skip
        chosen = {name: way for name, way in ways_of(case, options.compiled, device).items() if options.ways in name}
        print(f"equality: {integration}", file=sys.stderr)
        if not chosen:
            raise PalError(f"--ways {options.ways}: no way of {integration} has that in its name")
        generated = () if options.ways else generation_rows(case, device, options.new_tokens, options.compiled)
        for row in chain(training_rows(case, chosen, device, options.precisions.split(",")), generated):
            rows.append(row)
            if options.out is not None:  # after each, so that what stops a later one loses nothing
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "equality.json").write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
    show(rows, options.tolerance)
    if any(failed(row, options.tolerance) for row in rows):
        raise SystemExit(1)
    return rows


def show(rows: list[Result], tolerance: float) -> None:
    table = Table("integration", "precision", "way", "loss", "gradients (worst)", "(all)", "logits", "tokens", "")
    for row in rows:
        table.add_row(
            row["integration"], row["precision"], row["way"],
            *(f"{row[name]:.1e}" if name in row else "" for name in ("loss", "gradient", "all_gradients", "logits")),
            "" if "same_tokens" not in row else "the same" if row["same_tokens"] else "DIFFER",
            row["error"] or ("not equal" if failed(row, tolerance) else ""),
        )  # fmt: skip
    Console(width=160).print(table)


if __name__ == "__main__":
    try:
        main()
    except PalError as error:
        sys.exit(f"equality: error: {error}")
