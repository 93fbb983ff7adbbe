"""`pal bench infer`: the first token, the tokens after it, and what stays in memory.

    encode_audio ──► memory ──► attach + prefill ──► first token ──► decoding
    └──────── first_token_s ─────────────────────┘   token_s a token, all rows at once
                     └──── ready_first_token_s ──┘

A case's `extra` holds `new_tokens`, `clips` (1: all rows ask about one clip, whose memory is held once; 0: a clip for each
row), `decode` (a name in `DECODERS`), `chunk_tokens` (a clip is encoded in chunks of so many audio tokens; 0: at once) and
`prefill` (as a `Decoder` takes it; "plain": the model's forward).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pal_audio.bench import measure, models
from pal_audio.bench.case import Case
from pal_audio.bench.store import Row
from pal_audio.bench.train import memory_row
from pal_audio.encoders.base import Frames
from pal_audio.integration import cost
from pal_audio.integration.memory import AudioMemory, ClipTokens
from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.decoder import Decoder
from pal_audio.model.decoding import why_plain

COMPARED_VALUES = ["first_token_s", "ready_first_token_s", "token_s", "rest_bytes", "resident_rest_bytes", "kv_bytes"]
Text = dict[str, Tensor]
DEFAULTS = {"new_tokens": 32, "clips": 0, "decode": "generate", "chunk_tokens": 0, "prefill": "plain"}


def measure_case(case: Case, device: torch.device, repeats: int, warmup: int, rates: dict[str, float]) -> Row:
    """One row.

    Args:
        case: its settings; `extra` as above.
        device: where it runs.
        repeats, warmup: measured calls of each kind, and calls before them.
        rates: see `train.measure_case`.
    """
    extra: dict[str, Any] = DEFAULTS | case.extra
    model = models.build(case, device).eval()
    if case.setup.compile != "none":
        mode = None if case.setup.compile_mode == "default" else case.setup.compile_mode
        model.get_decoder().compile(mode=mode)
    inputs = models.make_batch(case, model, extra["clips"] or case.batch).inputs
    # On the CPU, as a processor gives it: clips are placed there, and the model moves all of it itself.
    text: Text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    encode = partial(make_memory, case, model, inputs, extra["chunk_tokens"])
    decode = DECODERS[extra["decode"]]
    ask: Callable[[AudioMemory | None], Any] = partial(first_token, model, text)
    if extra["prefill"] != "plain":
        ask = by_decoder(model, text, extra["new_tokens"], extra["prefill"], kernel=WITH_KERNEL.get(extra["decode"]))
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=case.setup.precision == "autocast"):
        for _ in range(warmup):
            ask(shared(encode(), case.batch))
        memory = encode()
        for _ in range(warmup):  # a decoder captures at the second question about a memory
            ask(shared(memory, case.batch))
        encode_times = measure.timed(encode, repeats, device) if memory is not None else None
        measure.settle(lambda: ask(shared(memory, case.batch)), device)
        ready = measure.timed(lambda: ask(shared(memory, case.batch)), repeats, device)
        whole = measure.timed(lambda: ask(shared(encode(), case.batch)), repeats, device)
        memory = ask = None  # type: ignore[assignment]
        measure.reset_peak(device)
        memory = encode()
        kv = cache_bytes(first_token(model, text, shared(memory, case.batch)))
        peak = measure.peak_bytes(device)
        # While a model answers, the memory stands for the clips: their frames are let go.
        inputs.clear()
        held = 0 if memory is None else memory.num_bytes
        measure.reset_peak(device)
        token_s = decode(Asked(model, text, shared(memory, case.batch), extra["new_tokens"], device, repeats))
        resident_peak = measure.peak_bytes(device)
        weights = measure.weights_bytes(model)
        if case.setup.replays_graphs or extra["prefill"] != "plain":
            peak = resident_peak = None
        row = memory_row(peak, weights)
    work = case.work()
    prefill = cost.forward_flops(case.llm, replace(work, logits=1))
    # A decoding step reads the LLM's weights, the text cache (PLITS slots stand in it) and the memory's keys and values.
    reads_keys = "lal" if work.keys else work.integration if work.blocks(case.llm) else "text"
    keys = cost.memory_bytes(case.llm, replace(work, integration=reads_keys))
    decode_bytes = measure.weights_bytes(model.language_model) + kv + keys
    return row | {
        "compared": COMPARED_VALUES,
        "first_token_s": whole.median_s,
        "ready_first_token_s": ready.median_s,
        "encode_s": None if encode_times is None else encode_times.median_s,
        "times": {"first_token": asdict(whole), "ready_first_token": asdict(ready)},
        "token_s": token_s,
        "tokens_per_s": case.batch / token_s if token_s else None,
        "memory_bytes": held,
        "kv_bytes": kv,
        "resident_rest_bytes": None if resident_peak is None else resident_peak - weights,
        "flops": sum(prefill.values()),
        "byte_bound_s": decode_bytes / rates["bandwidth_bytes"],
        "rates": rates,
    }


def make_memory(case: Case, model: PalForConditionalGeneration, inputs: dict[str, Any], chunk_tokens: int) -> AudioMemory | None:
    """The memory of the case's clips; None for text alone.

    Args:
        case: its settings.
        model: of the case.
        inputs: `input_features` and `audio_num_samples`; of given frames where it is done in chunks.
        chunk_tokens: audio tokens of a chunk; 0: at once.
    """
    if case.integration == "text":
        return None
    if not chunk_tokens or chunk_tokens >= case.audio_tokens:
        return model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    frames: Frames = inputs["input_features"]
    step = chunk_tokens * case.stride
    samples = inputs["audio_num_samples"] // frames.layers[0].shape[1]
    parts = []
    for layer in frames.layers[0].split(step, dim=1):
        chunk = Frames([layer], torch.full_like(frames.lengths, layer.shape[1]))
        parts.append(model.encode_audio(chunk, samples * layer.shape[1]))
    return joined(parts)


def joined(parts: list[AudioMemory]) -> AudioMemory:
    """Memories of consecutive chunks of the same clips as one, in time order."""

    def cat(stream: int, layer: int, name: str) -> Tensor:
        return torch.cat([getattr(part, name)[stream][layer] for part in parts], dim=2)

    first = parts[0]
    sides = [
        [{layer: cat(stream, layer, name) for layer in layers} for stream, layers in enumerate(getattr(first, name))]
        for name in ("keys", "values")
    ]
    slots = None if first.clips.slots_CAD is None else torch.cat([part.clips.slots_CAD for part in parts], dim=1)  # type: ignore[misc]
    clips = ClipTokens(
        slots,
        torch.stack([part.clips.num_slots_C for part in parts]).sum(0),
        torch.stack([part.clips.num_keys_SC for part in parts]).sum(0),
        torch.stack([part.clips.spans_C for part in parts]).sum(0),
    )
    widths = [sum(part.widths[stream] for part in parts) for stream in range(len(first.widths))]
    return AudioMemory(clips, sides[0], sides[1], widths, first.fingerprint)


def shared(memory: AudioMemory | None, rows: int) -> AudioMemory | None:
    """A memory of one clip for every row, held once. One of many clips is left as it is."""
    return memory if memory is None or memory.num_clips == rows else memory.share(rows)


def first_token(model: PalForConditionalGeneration, text: Text, memory: AudioMemory | None) -> Any:
    """Prefill of the whole prompt; its cache. The next token is taken, as a caller would."""
    outputs = model(**text, audio_memory=memory, use_cache=True, logits_to_keep=1)
    outputs.logits[:, -1].argmax(-1)
    return outputs.past_key_values


def by_decoder(
    model: PalForConditionalGeneration, text: Text, new_tokens: int, prefill: str, kernel: bool | None = None
) -> Callable[[AudioMemory | None], Tensor]:
    """`first_token` by a decoder's own prefill, with or without its kernels.

    Raises:
        RuntimeError: when called, a prompt went the plain way; it says why.
    """
    decoder = Decoder(model, kernel=kernel, prefill=prefill)
    rows, width = text["input_ids"].shape
    decoder.allocate(rows, width + 1 + new_tokens, [], 0)

    def ask(memory: AudioMemory | None) -> Tensor:
        first_B1, *_ = decoder.first_token(**text, audio_memory=memory)
        reason = decoder.why_plain_prefill or why_plain(model)
        if reason is not None:
            raise RuntimeError(f"prefill {prefill}: {reason}")
        return first_B1

    return ask


@dataclass(frozen=True)
class Asked:
    """What is to be decoded: `new_tokens` behind the prompts `text` about `memory`, measured `repeats` times."""

    model: PalForConditionalGeneration
    text: Text
    memory: AudioMemory | None
    new_tokens: int
    device: torch.device
    repeats: int

    def text_there(self) -> Text:
        """The prompts on the device."""
        return {name: item.to(self.device) for name, item in self.text.items()}


def decode_by_generate(asked: Asked) -> float | None:
    """Seconds for one token of every row in greedy `generate`: what `new_tokens` more cost than one, over their number.

    None where the clock's noise is larger than that.
    """
    options: dict[str, Any] = {**asked.text_there(), "audio_memory": asked.memory, "do_sample": False, "pad_token_id": 0}

    def generate(num: int) -> None:
        asked.model.generate(**options, max_new_tokens=num, min_new_tokens=num)

    generate(2)
    long = measure.timed(partial(generate, 1 + asked.new_tokens), asked.repeats, asked.device).median_s
    short = measure.timed(partial(generate, 1), asked.repeats, asked.device).median_s
    return (long - short) / asked.new_tokens if long > short else None


def decode_by_loop(asked: Asked) -> float:
    """Seconds for one token of every row in a bare greedy loop behind one prefill: the median of its steps."""
    attached, text, model = None, asked.text_there(), asked.model
    if asked.memory is not None:
        attached = replace(model.attach(asked.memory, text["input_ids"], text["attention_mask"]), trusted=True)
    outputs = model(**text, audio_memory=attached, use_cache=True, logits_to_keep=1)
    state = {"cache": outputs.past_key_values, "next": outputs.logits[:, -1:].argmax(-1), "mask": text["attention_mask"]}

    def step() -> None:
        state["mask"] = torch.nn.functional.pad(state["mask"], (0, 1), value=1)
        outputs = model(
            input_ids=state["next"],
            attention_mask=state["mask"],
            past_key_values=state["cache"],
            audio_memory=attached,
            use_cache=True,
        )
        state["next"] = outputs.logits[:, -1:].argmax(-1)

    step()
    return measure.timed(step, asked.new_tokens, asked.device).median_s


def decode_by_graph(asked: Asked, kernel: bool | None = None) -> float:
    """Seconds for one token of every row in the loop of `model.decoding`, captured before: the median of its steps."""
    decoder = Decoder(asked.model, kernel=kernel)
    decoder.start(**asked.text, max_new_tokens=2 + asked.new_tokens, ends=[], pad=0, audio_memory=asked.memory)
    moving = [(tensor, tensor.clone()) for tensor in (decoder.token_B1, decoder.position_B1, decoder.column_1)]

    def again() -> None:
        """The first step once more: there are slots for what is timed alone."""
        decoder.run()
        for tensor, first in moving:
            tensor.copy_(first)

    measure.settle(again, asked.device)
    decoder.run()
    return measure.timed(decoder.run, asked.new_tokens, asked.device).median_s


DECODERS: dict[str, Callable[[Asked], float | None]] = {
    "generate": decode_by_generate,
    "loop": decode_by_loop,
    "compiled": decode_by_graph,
    "compiled-matmul": partial(decode_by_graph, kernel=False),
}
"""Ways to decode: seconds a token, or None."""
WITH_KERNEL = {"compiled-matmul": False}
"""Whether a way to decode attends by our kernels, in prompts too; elsewhere where the model can (None)."""


def cache_bytes(cache: Any) -> int:
    """Bytes of a text cache's keys and values."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
