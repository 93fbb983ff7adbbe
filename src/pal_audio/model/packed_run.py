"""One forward of a batch as a packed row: the rows one after another without their padding; see `integration.packing`.

Shapes: B rows, L the longest row, T tokens of all rows, n supervised tokens, V vocabulary, D width.
"""

from typing import Any

import torch
from torch import Tensor

from pal_audio.errors import PalError
from pal_audio.integration.packing import Packing
from pal_audio.transfer import send


def packing_of(language_model: Any, input_ids: Tensor, attention_mask: Any, past_key_values: Any) -> Packing:
    """How a batch is packed for this LLM, whose attention lets packing in.

    Raises:
        PalError: a packed batch has a text cache, a mask that is not (B, L), or padding on the left.
    """
    if past_key_values is not None:
        raise PalError("packed: there is no packing with a text cache; it is for training and scoring")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise PalError("packed: needs a 2D attention mask")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return Packing.of(mask, language_model.config.get_text_config())


def run_packed(
    language_model: Any,
    packing: Packing,
    embeddings_BLD: Tensor,
    position_ids: Tensor | None,
    supervised: tuple[Tensor, Tensor] | None,
    num_items_in_batch: Any = None,
    **kwargs: Any,
) -> Any:
    """The LLM over a packed row.

    Args:
        language_model: attends through PAL.
        packing: of the batch.
        embeddings_BLD: embedded text and PLITS tokens.
        position_ids: (B, L); 0 .. L - 1 if None.
        supervised: places and tokens (n,) of `Packing.supervised`; None without labels.
        num_items_in_batch: what the loss is divided by, as transformers' loss functions take it.

    Returns:
        The LLM's output with logits (B, L, V), or with labels (1, n, V) at the n places before a supervised token, and the loss.
    """
    packing = packing.to(embeddings_BLD.device)
    if position_ids is None:
        position_ids = torch.arange(embeddings_BLD.shape[1], device=embeddings_BLD.device).expand(embeddings_BLD.shape[:2])
    embeddings = packing.pack(embeddings_BLD)
    if supervised is not None:
        kwargs["logits_to_keep"] = send(supervised[0], embeddings.device)
    # A 4D mask goes through transformers as it is; our attention makes its own. A balance of experts counts its tokens.
    mask = torch.ones(1, 1, *embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    outputs = language_model(
        inputs_embeds=embeddings, attention_mask=mask,
        position_ids=packing.pack(position_ids), pal_packing=packing, **kwargs | {"use_cache": False},
    )  # fmt: skip
    packing.check_called(language_model.config.get_text_config().num_hidden_layers)
    if supervised is None:
        outputs.logits = packing.unpack(outputs.logits)
    else:
        targets = send(supervised[1], embeddings.device)[None]
        outputs.loss = language_model.loss_function(
            outputs.logits, targets, outputs.logits.shape[-1], num_items_in_batch=num_items_in_batch, shift_labels=targets
        )
        if getattr(outputs, "aux_loss", None) is not None:  # the balance of experts, as the LLM itself would add it
            outputs.loss = outputs.loss + language_model.router_aux_loss_coef * outputs.aux_loss
    return outputs
