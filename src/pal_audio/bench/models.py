"""The model and the batch of a case, with random weights and random inputs.

input row:  system (24) | marker | PLITS slots, if any | question | answer; the last half of the text is supervised
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pal_audio import encoders
from pal_audio.bench import shapes
from pal_audio.bench.case import Case
from pal_audio.encoders.base import EncoderConfig, Frames
from pal_audio.model import PalConfig, PalForConditionalGeneration
from pal_audio.model.presets import preset

DTYPES = {"bf16": torch.bfloat16, "autocast": torch.float32, "float32": torch.float32}


def _lal(case: Case) -> dict[str, Any]:
    return {"lal": case.lal_config.model_dump(exclude={"type"})}


def _pal(case: Case) -> dict[str, Any]:
    return _lal(case) | {"summary": {"type": "qformer", "queries": case.summary}}


PRESETS: dict[str, tuple[str, Callable[[Case], dict[str, Any]]]] = {
    "text": ("plits", lambda case: {}),  # its audio parts are taken out again
    "plits": ("plits", lambda case: {}),
    "lal": ("lal", _lal),
    "pal": ("pal", _pal),
    "flamingo": ("flamingo", lambda case: {"flamingo": {"layers": case.layers}}),
}
"""Preset and its own options by integration. A new one is a line here, and its name and counts in `integration.cost`."""


class GivenFrames(nn.Module):
    """Stands where a frozen encoder would; its frames come with the batch."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config


@dataclass
class Batch:
    """Inputs of a case on its device.

    Attributes:
        inputs: for the model's forward.
        labels: (B, L), -100 where nothing is supervised.
        columns: (n,) positions whose logits are asked for, the same in every row.
    """

    inputs: dict[str, Any]
    labels: Tensor
    columns: Tensor


def build(case: Case, device: torch.device) -> PalForConditionalGeneration:
    """A model with random weights, made on the device in the case's dtype; the LLM frozen where it should be."""
    fields = dict(shapes.LLMS[case.setup.llm])
    text_config = CONFIG_MAPPING[fields.pop("model_type")](**fields, pad_token_id=0, eos_token_id=None, bos_token_id=None)
    encoder = shapes.ENCODERS[case.setup.encoder]
    name, own = PRESETS[case.integration]
    options = {"connector": {"type": "mlp", "stride": encoder.stride}, "positions": case.setup.positions} | own(case)
    vocabulary = text_config.vocab_size
    config = PalConfig(text_config, preset(name, encoder.config, **options), vocabulary, vocabulary + 1)
    torch.manual_seed(0)
    with device:
        language_model = AutoModelForCausalLM.from_config(text_config)
    model = PalForConditionalGeneration(config, language_model).to(device)  # in float32, in which the LLM is proved
    for parameter in model.parameters():  # buffers keep float32, as in a loaded checkpoint: rotary frequencies
        parameter.data = parameter.data.to(DTYPES[case.setup.precision])
    if case.integration == "text":
        model.streams, model.encoders = nn.ModuleList(), nn.ModuleDict()
    elif encoder.given:
        model.encoders["audio"] = GivenFrames(encoders.parse(encoder.config))
    model.set_attn_implementation(case.setup.kernel)
    if case.setup.frozen_llm:
        model.language_model.requires_grad_(False)
    for parameter in model.encoders.parameters():
        parameter.requires_grad_(False)
    return model


def make_batch(case: Case, model: PalForConditionalGeneration, num_clips: int | None = None) -> Batch:
    """A batch of the common layout.

    Args:
        case: its sizes.
        model: of the case.
        num_clips: clips whose features are made; None: one a row.
    """
    device = model.marker.device
    generator = torch.Generator().manual_seed(1)
    slots = case.work().slots
    row = torch.randint(1, case.llm.vocab_size, (case.batch, case.text_tokens), generator=generator)
    is_text = case.integration == "text"
    if not is_text:
        row[:, case.system] = case.llm.vocab_size
        inserted = torch.full((case.batch, slots), case.llm.vocab_size + 1)
        row = torch.cat([row[:, : case.system + 1], inserted, row[:, case.system + 1 :]], dim=1)
    labels = row.clone()
    labels[:, : -case.supervised] = -100
    length = row.shape[1]
    columns = torch.arange(length - case.supervised - 1, length - 1, device=device)
    # Text stays on the CPU, as in training: the model places clips there and moves all of it itself.
    inputs: dict[str, Any] = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if not is_text:
        inputs |= audio_inputs(case, model, case.batch if num_clips is None else num_clips)
    return Batch(inputs, labels, columns)


def audio_inputs(case: Case, model: PalForConditionalGeneration, num_clips: int) -> dict[str, Any]:
    """Random frames, or features where the encoder runs, of clips of the case's length."""
    device, dtype = model.marker.device, model.marker.dtype
    encoder = shapes.ENCODERS[case.setup.encoder]
    config = encoders.parse(encoder.config)
    num_frames = case.audio_tokens * encoder.stride
    num_samples = round(num_frames * config.sampling_rate_hz / config.frame_rate_hz)
    assert config.output_lengths(num_samples) == num_frames, f"{num_frames} frames"
    samples_C = torch.full((num_clips,), num_samples)
    generator = torch.Generator(device).manual_seed(2)
    if encoder.given:
        shape = (num_clips, num_frames, config.frame_size)
        frames = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return {
            "input_features": Frames([frames], torch.full((num_clips,), num_frames)),
            "audio_num_samples": samples_C,
        }
    import numpy as np

    one = config.front_end()(np.random.default_rng(2).standard_normal(num_samples).astype(np.float32) * 0.1)
    features = one.to(device, dtype).repeat(num_clips, *[1] * (one.ndim - 1))
    return {"input_features": features, "audio_num_samples": samples_C}


def loss_function(case: Case, model: PalForConditionalGeneration, batch: Batch) -> Callable[[], Tensor]:
    """The function that computes the loss of a batch once."""
    device = model.marker.device
    targets = batch.labels[:, -case.supervised :].flatten().to(device)
    inputs = dict(batch.inputs) | {"use_cache": False}

    def text_inputs() -> dict[str, Any]:
        """The marker's vector in its place, without a clip: gradients pass the same tokens with a frozen LLM too."""
        if case.integration != "text":
            return {}
        embeddings = model.get_input_embeddings()(inputs["input_ids"].to(device))
        at_marker = torch.arange(embeddings.shape[1], device=embeddings.device) == case.system
        return {"inputs_embeds": torch.where(at_marker[:, None], model.marker.to(embeddings.dtype), embeddings)}

    def model_loss() -> Tensor:
        loss: Tensor = model(**inputs, **text_inputs(), labels=batch.labels, packed=case.setup.packed).loss
        return loss

    def supervised_loss() -> Tensor:
        logits = model(**inputs, **text_inputs(), logits_to_keep=batch.columns).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets)

    compute = model_loss if case.setup.packed or case.setup.logits == "model" else supervised_loss

    def in_precision() -> Tensor:
        with torch.autocast(model.marker.device.type, torch.bfloat16, enabled=case.setup.precision == "autocast"):
            return compute()

    return in_precision


def training_mode(case: Case, model: PalForConditionalGeneration) -> None:
    """Every module trains. The text row has no clip: the outermost module must not ask for the hidden one of training."""
    model.train()
    if case.integration == "text":
        model.training = False
    model.recompute_audio = case.setup.recompute_audio
    model.audio_kernel = case.setup.audio_kernel
    model.projections = case.setup.projections
    if case.setup.checkpointing:
        model.gradient_checkpointing_enable()
