"""What a LAL layer keeps for its gradients, and what it computes again instead.

    none     all is kept that differentiation asks for
    light    matrix products and attention are kept; norms, rotation, joins and masks are computed again
    full     nothing is kept but text's heads and the audio tokens that all layers share

Source: selective recomputation (Korthikanti et al., arXiv 2205.05198), by torch's own means; which operations is our choice.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["none", "light", "full"]


def _of_bool(value: Any) -> Any:
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


RecomputeSetting = Annotated[Recompute, BeforeValidator(_of_bool)]
"""In configurations; true and false mean full and none."""

_aten = torch.ops.aten
PRODUCTS = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
]
"""What `light` keeps; a kernel of ours joins it where it is defined, since not every torch has Triton."""


def recomputed(how: Recompute, function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function so that its gradients are computed with less kept."""
    if how == "none" or not torch.is_grad_enabled():
        return function(*inputs)
    if how == "light":
        return checkpoint(function, *inputs, use_reentrant=False, context_fn=_keep_products)
    return checkpoint(function, *inputs, use_reentrant=False)


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(PRODUCTS)
