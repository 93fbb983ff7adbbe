"""The gradient of an embedding that is the output layer's weight too, without a second one as large.

    ids ──► lookup ──► LLM ──► output layer ──► logits         both read one weight (V, D)
    gradient of the output layer (V, D)  +=  rows of the ids (N, D), equal ids' rows summed in float32

Torch makes zeros of (V, D), adds the rows into them, and then both gradients into a third tensor: half a millisecond of an H200
for Llama-3.2-1B in bfloat16, whatever the batch. Here rows are added where the output layer's gradient lies, which has to be
nobody else's: so it is for steps that `model.compiling` compiles, and output layers without hooks. Source: our choice.

Shapes: V vocabulary, D width, N tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pal_audio.integration.normed_projection import is_bare


class TiedEmbedding:
    """One forward's two readings of a tied weight.

    Args:
        head: the output layer.
        embedding: of the same weight.
    """

    def __init__(self, head: nn.Linear, embedding: nn.Embedding) -> None:
        self._head, self._parameter, self._padding = head, embedding.weight, embedding.padding_idx
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._weight_VD, self._anchor = _TwoReadings.apply(self._parameter, self._rows)  # type: ignore[no-untyped-call]

    def embed(self, ids: Tensor) -> Tensor:
        """Vectors (..., D) of ids (...); once."""
        rows: Tensor = _Lookup.apply(ids, self._parameter.detach(), self._anchor, self._rows, self._padding)  # type: ignore[no-untyped-call]
        return rows

    @contextmanager
    def as_head(self) -> Iterator[None]:
        """While the LLM runs: its output layer reads this forward's weight."""
        self._head._parameters["weight"] = self._weight_VD  # as `torch.func.functional_call` does
        try:
            yield
        finally:
            self._head._parameters["weight"] = self._parameter


def find_tied(model: Any) -> TiedEmbedding | None:
    """The tied embedding of a forward whose logits learn; None where lookup and output layer are not plain ones of one weight.

    Args:
        model: a `PalForConditionalGeneration`.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if type(head) is not nn.Linear or type(embedding) is not nn.Embedding or head.weight is not embedding.weight:
        return None
    if head._parameters.get("weight") is not embedding.weight:  # as FSDP leaves it, which hands weights out itself
        return None
    if not (torch.is_grad_enabled() and head.weight.requires_grad) or torch.compiler.is_compiling():
        return None
    if embedding.sparse or embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return None
    if not (is_bare(embedding) and is_bare(head)):
        return None
    if any(isinstance(module, FSDPModule) for module in chain([model], model.language_model.modules())):
        return None
    return TiedEmbedding(head, embedding)


class _TwoReadings(torch.autograd.Function):
    """A weight for the output layer, and an anchor by which its gradient waits for that of the lookup."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        ctx.rows, ctx.like = rows, weight_VD
        ctx.set_materialize_grads(False)
        return weight_VD.view_as(weight_VD), weight_VD.new_empty(0)

    @staticmethod
    def backward(ctx: Any, of_weight_VD: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if not ctx.rows:
            return of_weight_VD, None
        ids_N, rows_ND = ctx.rows.pop()
        places_N, sums_ND = _summed(ids_N, rows_ND, len(ctx.like))
        found = torch.zeros_like(ctx.like) if of_weight_VD is None else of_weight_VD
        return found.index_add_(0, places_N, sums_ND.to(found.dtype)), None


class _Lookup(torch.autograd.Function):
    """Vectors of ids; what comes back is kept for `_TwoReadings`."""

    @staticmethod
    def forward(
        ctx: Any, ids: Tensor, weight_VD: Tensor, anchor: Tensor, rows: list[tuple[Tensor, Tensor]], padding: int | None
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding = rows, padding
        return F.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        rows_ND = gradient.reshape(-1, gradient.shape[-1])
        if ctx.padding is not None:
            rows_ND = rows_ND.masked_fill((ids == ctx.padding).view(-1, 1), 0)
        ctx.rows[:] = [(ids.flatten(), rows_ND)]  # not beside what a backward pass left that ended in an error
        return None, None, None, None, None


def _summed(ids_N: Tensor, rows_ND: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Places (N,) and what to add there (N, D): an id's sum once, at the id, and zeros elsewhere.

    By torch's kernel for embeddings, which sums in float32 on a GPU, and many rows of one id (all slots have one) at once. Zeros
    go to places of their own: thousands of additions to one row wait for each other.

    Args:
        ids_N: token ids.
        rows_ND: their gradients.
        num_rows: of the embedding.
    """
    first_N = torch.searchsorted(ids_N.sort().values, ids_N)
    rows_ND = rows_ND if rows_ND.is_cuda else rows_ND.float()
    sums_ND: Tensor = torch.ops.aten.embedding_dense_backward(rows_ND, first_N, len(ids_N), -1, False)
    elsewhere_N = torch.arange(len(ids_N), device=ids_N.device) % num_rows
    return elsewhere_N.scatter(0, first_N, ids_N), sums_ND
