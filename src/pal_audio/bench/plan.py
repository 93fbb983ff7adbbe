"""`pal bench plan`: what a model will cost, every integration side by side."""

import re
from dataclasses import dataclass, replace
from typing import Any

from pal_audio.bench import estimate, shapes
from pal_audio.bench.case import Case, frame_width, qformer_cost
from pal_audio.bench.estimate import Card, Way
from pal_audio.bench.store import Row
from pal_audio.errors import PalError
from pal_audio.integration import cost
from pal_audio.integration.config import LalConfig, parse_layers
from pal_audio.integration.cost import INTEGRATIONS, LlmShape, Work


@dataclass(frozen=True)
class Planned:
    """What is planned for: an LLM, one row's work for each integration, and how it is computed.

    Attributes:
        llm: its sizes.
        works: by integration.
        way: see `estimate.Way`.
        notes: what is not counted, a line each.
    """

    llm: LlmShape
    works: dict[str, Work]
    way: Way
    notes: tuple[str, ...] = ()


def from_case(case: Case) -> Planned:
    """The plan of a benchmark's case for all integrations."""
    way = Way(case.setup.precision, case.setup.compile != "none")
    everything = case.model_dump(exclude={"integration"})
    audio = case.audio_tokens
    works = {
        name: Case.model_validate({**everything, "integration": name, "audio_tokens": audio}).work() for name in INTEGRATIONS
    }
    return Planned(case.llm, works, way)


def from_recipe(
    recipe: Any, stage: int, batch: int | None, text_tokens: int, seconds: float, audio_tokens: int | None
) -> Planned:
    """The plan of one stage of a recipe, for the recipe's own integration and the others with the same parts.

    Args:
        recipe: a `training.recipe.Recipe`.
        stage: its number, from 0.
        batch: rows; None: the stage's `batch_size`, or 16.
        text_tokens: of a row; half of them are supervised.
        seconds: of a clip.
        audio_tokens: of a clip, instead of what encoder and connector make of the seconds.

    Raises:
        PalError: the recipe holds what the plan cannot count.
    """
    model, notes = recipe.model, []
    if not 0 <= stage < len(recipe.stages):
        raise PalError(f"--stage {stage}: the recipe has stages 0 to {len(recipe.stages) - 1}")
    chosen = recipe.stages[stage]
    if model.preset is None:
        raise PalError("the plan counts presets; this recipe writes its own streams")
    if model.encoder is None:
        raise PalError("the plan counts the one `encoder` of a preset; this recipe has none or several: measure a short run")
    connector = {"type": "mlp", "stride": 2} | (model.connector or {})
    if connector["type"] != "mlp":
        raise PalError(f"the plan counts the mlp connector for the full sequence, not {connector['type']!r}")
    encoder = _encoder(model.encoder, connector["stride"])
    if encoder is None and audio_tokens is None:
        raise PalError(f"the plan does not know encoder {model.encoder!r}; say --audio-tokens")
    if encoder is None:
        notes.append("the encoder is not counted, its frames are taken to be 768 wide")
        width, frames, encoder_cost = 768, (audio_tokens or 0) * connector["stride"], cost.EncoderCost()
    else:
        width = frame_width(encoder)
        frames = _num_frames(encoder, seconds) if audio_tokens is None else audio_tokens * encoder.stride
        encoder_cost = shapes.encoder_cost(encoder, frames)
    if recipe.adapter is not None:
        notes.append("the adapter's own weights and products are not counted")
    summary = model.summary or {"type": "qformer", "queries": 16}
    if summary["type"] != "qformer":
        notes.append("the summary is counted as a qformer of 16 queries")
    lal = LalConfig(**{key: value for key, value in (model.lal or {}).items() if key != "type"})
    llm = _recipe_llm(model.llm)
    common = Work(
        integration="text",
        batch=batch or chosen.batch_size or 16,
        text_tokens=text_tokens,
        audio_tokens=-(-frames // connector["stride"]),
        logits=text_tokens // 2,
        connector=cost.Mlp(width, connector["stride"]),
        summary=qformer_cost(int(summary.get("queries", 16)), width, summary.get("num_heads"), int(summary.get("num_layers", 2))),
        projector=lal.projector,
        rank=lal.rank,
        lal_layers=len(parse_layers(lal.layers, llm.num_layers)),
        encoder=encoder_cost,
        frozen_llm="llm" not in chosen.train,
        checkpointing=chosen.checkpointing,
        element_bytes=4,
    )
    four_bit = recipe.adapter is not None and recipe.adapter.type == "qlora"
    way = Way("autocast" if recipe.precision == "bfloat16" else "float32", chosen.compile, four_bit)
    return Planned(llm, {name: replace(common, integration=name) for name in INTEGRATIONS}, way, tuple(notes))


def _encoder(fields: dict[str, Any], stride: int) -> shapes.Encoder | None:
    """What the plan knows of a recipe's encoder, or None."""
    if fields.get("type") == "conv":
        return shapes.Encoder({"type": "conv", **fields}, stride)
    if fields.get("type") != "whisper":
        return None
    if fields.get("config"):
        return shapes.Encoder({"type": "whisper", "config": shapes.WHISPER_DEFAULTS | fields["config"]}, stride)
    known = shapes.ENCODERS.get(str(fields.get("checkpoint", "")).rpartition("/")[2])
    return None if known is None else replace(known, stride=stride)


def _num_frames(encoder: shapes.Encoder, seconds: float) -> int:
    from pal_audio import encoders

    config = encoders.parse(encoder.config)
    return config.output_lengths(round(seconds * config.sampling_rate_hz))


def _recipe_llm(llm: str | dict[str, Any]) -> LlmShape:
    if isinstance(llm, dict):
        return shapes.llm_shape({"vocab_size": (llm.get("tokenizer") or {}).get("vocab_size"), **llm})
    name = re.sub(r"-(instruct|base)$", "", llm.rpartition("/")[2].lower())
    return shapes.llm_shape(shapes.find(name, shapes.LLMS, "llm"))


def rows(planned: Planned, card: Card, new_tokens: int = 256) -> list[Row]:
    """The plan as one row for each integration."""
    found = []
    for name, work in planned.works.items():
        llm, way = planned.llm, planned.way
        memory = estimate.training_memory(llm, work, way)
        size = 2 if way.precision == "bf16" else 4
        inference = replace(work, element_bytes=size)
        found.append(
            {
                "integration": name,
                "parameters": cost.num_parameters(llm, work),
                "trained": cost.trained_parameters(llm, work),
                "step_flops": cost.step_flops(llm, work),
                "forward_flops": cost.forward_flops(llm, work),
                "kv_bytes": cost.kv_bytes(llm, inference, work.row_tokens + new_tokens),
                "memory_bytes": cost.memory_bytes(llm, inference),
                "expanded_bytes": cost.expanded_bytes(llm, inference),
                "peak_bytes": memory.peak,
                "rest_bytes": memory.rest,
                "inference_bytes": estimate.inference_memory(llm, work, way, new_tokens),
                "step_s": estimate.step_seconds(llm, work, way, card),
                "floor_s": estimate.step_seconds(llm, work, way, card, estimate.FLOOR),
                "largest_batch": estimate.largest_batch(llm, work, way, card),
                "constants": way.constants.provenance,
            }
        )
    return found
