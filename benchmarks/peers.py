"""transformers' audio-LLMs beside ours at equal shape: Qwen2-Audio, Audio Flamingo 3 and Voxtral, all with random weights.

    python benchmarks/peers.py --llm llama-3.2-1b --batch 16 --audio-tokens 750 --out results/peers

Every class gets the same LLM shape, a frozen encoder of Whisper's kind that runs, the same number of tokens in a row, and
the same optimizer; each is used as it is, so logits are made where its forward makes them. What differs is in their design:
Voxtral stacks four frames to a token (ours and the others two), so its encoder sees twice the sound for as many tokens.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pal_audio.bench import infer, measure, models, shapes, train
from pal_audio.bench.case import Case, Setup
from pal_audio.bench.run import failures, find_device, guarded
from pal_audio.bench.store import Row
from pal_audio.bench.table import gib, header_lines, milliseconds
from pal_audio.config import parse_config
from pal_audio.errors import PalError

MEL_FRAMES_PER_POSITION = 2


@dataclass(frozen=True)
class Peer:
    """A class of transformers.

    Attributes:
        name: of its model type.
        model_class: its name in transformers.
        positions_per_token: encoder positions that become one audio token.
        mask: name of the mask of its features, if it takes one.
    """

    name: str
    model_class: str
    positions_per_token: int
    mask: str | None


PEERS = [
    Peer("qwen2_audio", "Qwen2AudioForConditionalGeneration", 2, "feature_attention_mask"),
    Peer("audioflamingo3", "AudioFlamingo3ForConditionalGeneration", 2, "input_features_mask"),
    Peer("voxtral", "VoxtralForConditionalGeneration", 4, None),
]


def build(peer: Peer, case: Case, device: torch.device) -> nn.Module:
    """The class with random weights in the case's dtype, its encoder frozen.

    Raises:
        PalError: the case's encoder is not of Whisper's kind.
    """
    encoder = shapes.ENCODERS[case.setup.encoder].config
    if encoder["type"] != "whisper":
        raise PalError(f"--encoder {case.setup.encoder}: the peers' encoders are of Whisper's kind")
    fields = dict(shapes.LLMS[case.setup.llm])
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    vocabulary = fields["vocab_size"]
    text = CONFIG_MAPPING[fields.pop("model_type")](**fields, **ids)
    config_class = CONFIG_MAPPING[peer.name]
    audio = config_class().audio_config.to_dict() | _encoder_fields(encoder["config"])
    config = config_class(text_config=text, audio_config=audio)
    config.audio_token_id = vocabulary - 1
    torch.manual_seed(0)
    with device:
        model = getattr(transformers, peer.model_class)(config)
    if text.tie_word_embeddings:  # the classes do not look
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(models.DTYPES[case.setup.precision])
        parameter.requires_grad_("audio_tower" not in name)
    return model


def _encoder_fields(whisper: dict[str, Any]) -> dict[str, Any]:
    """Whisper's fields under both of the names that the classes use."""
    named = {"d_model": "hidden_size", "encoder_layers": "num_hidden_layers", "encoder_attention_heads": "num_attention_heads",
             "encoder_ffn_dim": "intermediate_size"}  # fmt: skip
    return whisper | {named[name]: value for name, value in whisper.items() if name in named}


def inputs_of(peer: Peer, case: Case, device: torch.device) -> dict[str, Any]:
    """A row of ours, the marker an ordinary token, as this class takes it; whole windows of sound.

    Raises:
        PalError: the clip's tokens do not fill its windows.
    """
    fields = shapes.ENCODERS[case.setup.encoder].config["config"]
    positions = fields["max_source_positions"]
    windows, rest = divmod(case.audio_tokens * peer.positions_per_token, positions)
    if rest or not windows:
        raise PalError(f"{peer.name}: {case.audio_tokens} audio tokens do not fill windows of {positions} positions")
    generator = torch.Generator().manual_seed(1)
    audio_token = case.llm.vocab_size - 1
    row = torch.randint(1, audio_token, (case.batch, case.text_tokens), generator=generator)
    audio = torch.full((case.batch, case.audio_tokens), audio_token)
    row = torch.cat([row[:, : case.system + 1], audio, row[:, case.system + 1 :]], dim=1)
    shape = (case.batch * windows, fields["num_mel_bins"], positions * MEL_FRAMES_PER_POSITION)
    features = torch.randn(shape, generator=generator).to(device, models.DTYPES[case.setup.precision])
    inputs = {"input_ids": row.to(device), "attention_mask": torch.ones_like(row).to(device), "input_features": features}
    if peer.mask is not None:
        inputs[peer.mask] = torch.ones(shape[0], shape[2], dtype=torch.int64, device=device)
    return inputs


def measure_peer(peer: Peer, case: Case, device: torch.device, steps: int, warmup: int, new_tokens: int) -> Row:
    """A row of a class: training step, then generation."""
    model = build(peer, case, device)
    inputs = inputs_of(peer, case, device)
    row = _training(model, case, inputs, device, steps, warmup)
    return row | {"token_s": _generation(model.eval(), inputs, new_tokens, device)}


def _training(model: nn.Module, case: Case, inputs: dict[str, Any], device: torch.device, steps: int, warmup: int) -> Row:
    model.train()
    labels = inputs["input_ids"].clone()
    labels[:, : -case.supervised] = -100
    if case.setup.compile != "none":
        model.get_decoder().compile()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=train.LEARNING_RATE, fused=True)

    def backward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=case.setup.precision == "autocast"):
            loss: torch.Tensor = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        return loss.detach()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    first_loss = float(backward())
    gradients = measure.gradients_bytes(model)
    update()

    def step() -> None:
        backward()
        update()

    for _ in range(warmup - 1):
        step()
    measure.reset_peak(device)
    times = measure.timed(step, steps, device)
    parts = measure.weights_bytes(model), gradients, measure.optimizer_bytes(optimizer)
    row = train.memory_row(measure.peak_bytes(device), *parts)
    return row | {"step_s": times.median_s, "times": asdict(times), "first_loss": first_loss}


@torch.no_grad()
def _generation(model: nn.Module, inputs: dict[str, Any], new_tokens: int, device: torch.device) -> float | None:
    """Seconds a token, or None, as `infer.decode_by_generate` takes them."""

    def generate(num: int) -> None:
        model.generate(**inputs, max_new_tokens=num, min_new_tokens=num, do_sample=False, pad_token_id=0)

    generate(2)
    long = measure.timed(partial(generate, 1 + new_tokens), 3, device).median_s
    short = measure.timed(partial(generate, 1), 3, device).median_s
    return (long - short) / new_tokens if long > short else None


def measure_ours(case: Case, device: torch.device, steps: int, warmup: int, new_tokens: int, rates: dict[str, float]) -> Row:
    """A row of ours: training step, then generation with a ready memory."""
    row = train.measure_case(case, device, steps, warmup, rates)
    measure.clean(device)
    extra = {"new_tokens": new_tokens}
    generation = infer.measure_case(case.model_copy(update={"extra": extra}), device, 3, 1, rates)
    return row | {"token_s": generation["token_s"]}


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description="transformers' audio-LLMs beside ours at equal shape")
    parser.add_argument("--llm", default="llama-3.2-1b")
    parser.add_argument("--encoder", default="whisper-large-v3")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--audio-tokens", type=int, default=750)
    parser.add_argument("--text-tokens", type=int, default=64)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", default="none")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = find_device(options.device)
    said = {name: getattr(options, name) for name in ("llm", "encoder", "precision", "compile")}
    setup = parse_config(TypeAdapter(Setup), said, "benchmark")
    sizes = {"batch": options.batch, "audio_tokens": options.audio_tokens, "text_tokens": options.text_tokens}
    plits, lal = (Case(setup=setup, integration=name, **sizes) for name in ("plits", "lal"))
    dtype = torch.float32 if options.precision == "float32" else torch.bfloat16
    rates = {"matrix_flops": measure.matrix_rate(device, dtype), "bandwidth_bytes": measure.bandwidth(device)}
    how = (options.steps, options.warmup, options.new_tokens)
    calls: dict[str, Callable[[], Row]] = {}
    for peer in PEERS:
        calls[peer.name] = partial(measure_peer, peer, plits, device, *how)
    for case in (plits, lal):
        calls[f"pal {case.integration}"] = partial(measure_ours, case, device, *how, rates)
    rows = []
    for name, call in calls.items():
        print(f"peers: {name}", file=sys.stderr, flush=True)
        rows.append({"name": name} | guarded(call, device))
    header = {"hardware": measure.hardware(device), "rates": rates, "command": " ".join(sys.argv), "date": measure.now()}
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "peers.json").write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
    _print(header, rows)
    if failed := failures([rows]):
        raise SystemExit(f"peers: error: {len(failed)} of {len(rows)} failed, the first is {failed[0]['name']}")
    return rows


def _print(header: Row, rows: list[Row]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    for line in header_lines(header):
        console.print(line, markup=False, highlight=False)
    table = Table("class", "step ms", "peak GiB", "weights", "rest", "ms a token")
    for row in rows:
        if row["error"]:
            table.add_row(row["name"], row["error"])
            continue
        memory = (gib(row[name]) for name in ("peak_bytes", "weights_bytes", "rest_bytes"))
        table.add_row(row["name"], milliseconds(row["step_s"]), *memory, milliseconds(row["token_s"]))
    console.print(table)


if __name__ == "__main__":
    try:
        main()
    except PalError as error:
        sys.exit(f"peers: error: {error}")
