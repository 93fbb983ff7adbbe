"""The parts of a model that a stage can train, by name."""

import warnings
from collections.abc import Callable, Sequence

from torch import nn

from pal_audio.errors import PalError
from pal_audio.integration.key_values import ATTENTIONS
from pal_audio.model import PalForConditionalGeneration
from pal_audio.model.adapters import is_adapter_parameter
from pal_audio.model.parts import Parts

_NORM_WORDS = ("norm", "ln_")
_FFN_WORDS = (".mlp.", ".block_sparse_moe.", ".feed_forward.")


def _is_adapter(name: str) -> bool:
    return name.startswith("language_model.") and is_adapter_parameter(name)


def _is_llm(name: str) -> bool:
    return name.startswith("language_model.") and not is_adapter_parameter(name)


def _is_norm(name: str) -> bool:
    return _is_llm(name) and any(word in name for word in _NORM_WORDS)


def _is_ffn(name: str) -> bool:
    return _is_llm(name) and not _is_norm(name) and any(word in name for word in _FFN_WORDS)


def _is_attention(name: str) -> bool:
    return _is_llm(name) and not _is_norm(name) and any(f".{word}." in name for word in ATTENTIONS)


def _is_embedding(name: str) -> bool:
    return _is_llm(name) and not (_is_norm(name) or _is_ffn(name) or _is_attention(name))


# The marker is the connector's: it stands for the clip in text. "llm" is the base model; an adapter trains when it is named.
GROUPS: dict[str, Callable[[str], bool]] = {
    "connector": lambda name: name == "marker" or (name.startswith("streams.") and ".connector." in name),
    "projector": lambda name: name.startswith("streams.") and ".projectors." in name,
    "flamingo": lambda name: name.startswith("streams.") and name.split(".")[2] == "blocks",
    "encoder": lambda name: name.startswith("encoders."),
    "llm": _is_llm,
    "llm.attention": _is_attention,
    "llm.ffn": _is_ffn,
    "llm.norm": _is_norm,
    "llm.embeddings": _is_embedding,
    "llm.adapter": _is_adapter,
}


QLORA_FROZEN = ("llm", "llm.attention", "llm.ffn")


def frozen_by_qlora(part: str) -> str:
    """What is wrong with a stage that trains a part whose weights qlora keeps in 4 bits."""
    return (
        f"train: {part!r} cannot train under `adapter: {{type: qlora}}`, which keeps its weights in 4 bits; "
        "train 'llm.adapter', or take type lora"
    )


def parameter_groups(
    model: PalForConditionalGeneration | Parts, train: dict[str, float], weight_decay: float
) -> list[dict[str, object]]:
    """Freeze and unfreeze parameters, and group them for an optimizer.

    Args:
        model: its parameters' `requires_grad` is set: True for exactly the named parts.
        train: learning rate of each part; "llm" covers what no "llm.*" beside it names.
        weight_decay: of matrices; vectors (norms, biases, scales) get none.

    Returns:
        Groups with `params`, `lr`, `weight_decay`, and `initial_lr` for the schedule.

    Raises:
        PalError: a part has no parameters in this model, has some in 4 bits, or is an encoder whose configuration says `frozen`.

    "projector" without LAL in the model is a warning.
    """
    precise_first = sorted(train, key=lambda part: part == "llm")
    taken: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in precise_first}
    for name, parameter in model.named_parameters():
        part = next((part for part in precise_first if GROUPS[part](name)), None)
        if part == "encoder" and model.encoders[name.split(".")[1]].config.frozen:
            part = None
        if part is not None and not parameter.is_floating_point():
            raise PalError(frozen_by_qlora(part))
        parameter.requires_grad_(part is not None)
        if part is not None:
            taken[part].append((name, parameter))
    groups: list[dict[str, object]] = []
    for part, items in taken.items():
        if not items and part == "projector":  # only LAL has them; one word shall switch the preset
            warnings.warn("train: projector: this model has no LAL stream, so it has no effect", stacklevel=2)
        elif not items:
            mend = "its configuration says frozen: true" if part == "encoder" else "this model has none"
            mend = "the recipe has no `adapter:`" if part == "llm.adapter" else mend
            raise PalError(f"train: {part!r} names no parameter ({mend}); take it out of the stage")
        groups += rate_groups([parameter for _, parameter in items], train[part], weight_decay)
    return groups


def rate_groups(parameters: Sequence[nn.Parameter], rate: float, weight_decay: float) -> list[dict[str, object]]:
    """Parameters of one rate for an optimizer, matrices with weight decay and vectors without."""
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    return [
        {"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for decay, chosen in ((weight_decay, matrices), (0.0, vectors))
        if chosen
    ]
