"""Low-rank adapters on the LLM: peft's own layers in place of chosen linear modules, and nothing else changed.

The model keeps its class, its names and its attention; LAL calls a layer's key and value modules, so an adapter on them
applies to audio and learns from it. An adapter belongs to the model's configuration: `from_pretrained` builds it again, and
its weights stand in the same safetensors file as the rest.

Source: LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353; both as peft has them. QLoRA, arXiv 2305.14314, is LoRA on `four_bit`.
"""

import difflib
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn
from transformers.pytorch_utils import Conv1D

from pal_audio.config import StrictConfig
from pal_audio.errors import PalError
from pal_audio.integration.key_values import compute_dtype, find_layers
from pal_audio.model.four_bit import bitsandbytes_found, dequantise, import_bitsandbytes, quantise

ALL_LINEAR = "all_linear"
_WEIGHT_MARK = ".lora_"  # in the name of every parameter that peft adds, DoRA's magnitudes included


class AdapterConfig(StrictConfig):
    """An adapter on the LLM.

    Attributes:
        type: "lora"; "dora" also trains the magnitude of each output; "qlora" is "lora" on layers whose weights are in 4 bits.
        r: rank.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: on the adapter's input, in training.
        target: names of linear modules in the decoder layers, or "all_linear" for every one of them; weights that are not in
            modules of their own, as those of experts, have no adapter.

    Source: the defaults are LTU's (rank 8, alpha 16, dropout 0.05 on queries and values).
    """

    type: Literal["lora", "dora", "qlora"] = "lora"
    r: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target: Literal["all_linear"] | list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"])

    @field_validator("target", mode="before")
    @classmethod
    def _some_target(cls, value: Any) -> Any:
        if value != ALL_LINEAR and not (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
            raise PalError(f"target: {value!r} must be {ALL_LINEAR} or a list of module names such as [q_proj, v_proj]")
        return value

    def check(self) -> None:
        """Refuse what this machine cannot do.

        Raises:
            PalError: qlora without bitsandbytes.
        """
        if self.type == "qlora":
            import_bitsandbytes()


def is_adapter_parameter(name: str) -> bool:
    """True for the name of a parameter that an adapter brought."""
    return _WEIGHT_MARK in name


def add_adapter(llm: nn.Module, config: AdapterConfig) -> None:
    """Put an adapter into an LLM in place. It starts as the identity, and freezes the LLM's own weights, as peft does.

    For "qlora" the linear modules of the layers are quantised first, where they are not yet.

    Raises:
        PalError: a target that the decoder layers do not have, or a type that cannot be had.
    """
    config.check()
    if config.type == "qlora":
        quantise(llm)
    elif bitsandbytes_found():
        import_bitsandbytes()  # in our way: peft imports it too
    from peft import LoraConfig, inject_adapter_in_model

    targets = _targets(llm, config.target)
    options = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=targets,
        use_dora=config.type == "dora",
        fan_in_fan_out=all(isinstance(linear, Conv1D) for name, linear in _linears(llm) if name in targets),
    )
    llm.requires_grad_(False)
    # Into the bare layers: in an LLM of experts peft takes names such as `gate_proj` for the experts' tensors.
    inject_adapter_in_model(options, nn.ModuleList(find_layers(llm)))


def merge_adapter(llm: nn.Module) -> int:
    """Add the adapter to the weights that it stands on, take it out, and unfreeze the LLM. Returns the number of modules merged.

    Weights in 4 bits, also those without an adapter, become the numbers that they stand for: merged in float32, kept in the
    dtype of the rest.

    Raises:
        RuntimeError: a merged weight is not finite.
    """
    dtype, once_four_bit = compute_dtype(llm), dequantise(llm)
    places = list(_adapted(llm))
    for parent, name, layer in places:
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise RuntimeError(f"the adapter of {name} cannot be merged: {error}") from error
        setattr(parent, name, layer.get_base_layer())
    for linear in once_four_bit:
        linear.to(dtype)
    llm.requires_grad_(True)
    return len(places)


def _adapted(llm: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in llm.modules():
        for name, child in parent.named_children():
            if isinstance(child, BaseTunerLayer):
                yield parent, name, child


def _targets(llm: nn.Module, wanted: str | list[str]) -> list[str]:
    known = sorted({name for name, _ in _linears(llm)})
    if isinstance(wanted, str):
        return known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise PalError(
            f"adapter: target {unknown[0]!r} is no linear module of this LLM's layers; {hint}they have {', '.join(known)}"
        )
    return wanted


def _linears(llm: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear modules of the decoder layers by their own names; GPT-2's hold their weights transposed."""
    for layer in find_layers(llm):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                yield name.rpartition(".")[2], module
