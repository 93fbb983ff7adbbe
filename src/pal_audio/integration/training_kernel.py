"""The attention of a training step to [audio | text] as Triton kernels, with a backward pass: nothing is joined or masked.

    forward   block (row, key head, queries) ──► audio keys, then text keys ──► output, and the logarithm of its sum of weights
    backward  block (row, key head, queries) ──► likewise ──► gradient of the queries, and sum(gradient * output) of each
              block (row, key head, keys)    ──► queries that see them ──► gradients of the keys and their values

The queries of all heads that share a key head lie side by side, token after token, as in `prompt_kernel`: a block of them stands
at few tokens, and the heads sum what they give their keys in registers, always in one order. What a token sees follows from
positions: an audio key from a position on; text before the token, within its window; itself. Blocks of queries and keys that
cannot see each other are passed over. Rows begin with their tokens; padding behind them gets what nobody reads.

The forward is not `prompt_kernel`'s: that one takes heads by halves, which it rotates, so that heads of 16 are none for it, and
a flag more would be one for every prompt. Source: our choice, after FlashAttention 2 (arXiv 2307.08691).

Shapes: B rows, L tokens, H query heads, K key heads, G = H / K, A audio keys, N keys of either, d head width.
"""

# mypy: disable-error-code="import-not-found, no-untyped-def"

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pal_audio.integration.decode_kernel import _finished, _taken_in, parts, power_of_2
from pal_audio.integration.recompute import PRODUCTS


class Blocks(NamedTuple):
    """How a kernel is cut: queries and keys at once, and how Triton compiles it."""

    queries: int
    keys: int
    warps: int
    stages: int


# By the widest head that they are for. Quickest on an H100: of some 33 (64) at 64 x 1,024 audio tokens, 12 (128) at 16 x 1,024.
FORWARD = {64: Blocks(64, 32, 4, 1), 128: Blocks(64, 64, 4, 2), 256: Blocks(64, 32, 8, 2)}
TO_QUERIES = {64: Blocks(64, 64, 4, 1), 128: Blocks(64, 64, 4, 2), 256: Blocks(64, 32, 8, 2)}
TO_KEYS = {64: Blocks(32, 64, 4, 1), 128: Blocks(64, 64, 4, 1), 256: Blocks(32, 64, 8, 2)}
IN_FLOAT32 = Blocks(32, 32, 8, 1)  # for every kernel: exact products take no tensor cores, and twice the room

NEVER = tl.constexpr(torch.iinfo(torch.int32).max)
POSITIONS_AT_ONCE = tl.constexpr(128)
OF_BATCH = ["positions_b", "after_b", "length", "window", "a_num"]  # change from step to step; Triton would compile for each kind


@triton.jit
def _hears(position, after):
    """(M, N): positions of queries beside those behind which keys are seen."""
    return position[:, None] > after[None, :]


@triton.jit
def _reads(token, key, window):
    """(M, N): tokens of queries beside those of text keys. No token of the row sees a key behind the row."""
    behind = token[:, None] - key[None, :]
    return (behind >= 0) & (behind < window)


@triton.jit
def _of_block(block, length, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Numbers of a block's queries, their tokens and groups, and which are of the row: query m is group m % G of token m // G."""
    number = block * BLOCK_M + tl.arange(0, BLOCK_M)
    return number, number // GROUPS, number % GROUPS, number // GROUPS < length


@triton.jit
def _reach(position, least, block, length, window, a_num, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The end of the audio that a block of queries sees, and first and end of the text."""
    a_end = tl.where(tl.max(position, 0) > tl.load(least), a_num, 0)
    t_first = tl.maximum(block * BLOCK_M // GROUPS - window + 1, 0) // BLOCK_N * BLOCK_N
    return a_end, t_first, tl.minimum((block * BLOCK_M + BLOCK_M - 1) // GROUPS + 1, length)


@triton.jit
def _loaded(keys, values, start, end, key_n, val_n, BLOCK_N: tl.constexpr, SIZE: tl.constexpr):
    """Keys and values from `start` on; zeros from `end` on."""
    at_n, at_d, far = tl.arange(0, BLOCK_N), tl.arange(0, SIZE), tl.cast(start, tl.int64)
    in_n = (start + at_n < end)[:, None]
    key = tl.load(keys + far * key_n + (at_n * key_n)[:, None] + at_d[None, :], mask=in_n, other=0.0)
    value = tl.load(values + far * val_n + (at_n * val_n)[:, None] + at_d[None, :], mask=in_n, other=0.0)
    return key, value


@triton.jit
def _of_scores(query, key, value, gradient, log_sum, delta, visible, scale, PRECISION: tl.constexpr):
    """(M, N) gradients of scores, in the dtype of products."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    weights = tl.where(visible, tl.exp(scores - log_sum[:, None]), 0.0)
    of_weights = tl.dot(gradient, tl.trans(value), input_precision=PRECISION)
    return (weights * (of_weights - delta[:, None])).to(key.dtype)


@triton.jit(do_not_specialize=[*OF_BATCH, "query_blocks"])
def _training_forward(
    query, t_keys, t_values, a_keys, a_values, positions, after, least, result, sums,
    query_b, query_h, query_l, t_key_b, t_key_k, t_key_n, t_val_b, t_val_k, t_val_n,
    a_key_b, a_key_k, a_key_n, a_val_b, a_val_k, a_val_n, positions_b, after_b,
    length, window, a_num, key_heads, query_blocks, scale,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block: BLOCK_M queries of a row's key head, and all keys that one of them sees."""
    pair, block = tl.program_id(0) // query_blocks, tl.program_id(0) % query_blocks
    row, head = (pair // key_heads).to(tl.int64), (pair % key_heads).to(tl.int64)
    at_n, at_d = tl.arange(0, BLOCK_N), tl.arange(0, SIZE)
    number, token, group, in_m = _of_block(block, length, GROUPS, BLOCK_M)
    at_query = query + row * query_b + head * GROUPS * query_h + (group * query_h + token * query_l)[:, None] + at_d[None, :]
    queries = tl.load(at_query, mask=in_m[:, None], other=0.0)
    position = tl.load(positions + row * positions_b + token, mask=in_m, other=-1)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    output = tl.zeros([BLOCK_M, SIZE], tl.float32)

    a_end, t_first, t_end = _reach(position, least + row, block, length, window, a_num, GROUPS, BLOCK_M, BLOCK_N)
    a_keys += row * a_key_b + head * a_key_k
    a_values += row * a_val_b + head * a_val_k
    after += row * after_b
    for start in range(0, a_end, BLOCK_N):
        key, value = _loaded(a_keys, a_values, start, a_end, a_key_n, a_val_n, BLOCK_N, SIZE)
        visible = _hears(position, tl.load(after + start + at_n, mask=start + at_n < a_end, other=NEVER))
        scores = tl.where(visible, tl.dot(queries, tl.trans(key), input_precision=PRECISION) * scale, float("-inf"))
        highest, total, output = _taken_in(scores, value, highest, total, output, PRECISION)

    t_keys += row * t_key_b + head * t_key_k
    t_values += row * t_val_b + head * t_val_k
    for start in range(t_first, t_end, BLOCK_N):
        key, value = _loaded(t_keys, t_values, start, t_end, t_key_n, t_val_n, BLOCK_N, SIZE)
        visible = _reads(token, start + at_n, window)
        scores = tl.where(visible, tl.dot(queries, tl.trans(key), input_precision=PRECISION) * scale, float("-inf"))
        highest, total, output = _taken_in(scores, value, highest, total, output, PRECISION)

    output, log_sum = _finished(highest, total, output)
    heads = key_heads * GROUPS
    at_result = result + (row * length * heads + head * GROUPS) * SIZE + ((token * heads + group) * SIZE)[:, None] + at_d[None, :]
    tl.store(at_result, output.to(result.dtype.element_ty), mask=in_m[:, None])
    tl.store(sums + pair.to(tl.int64) * length * GROUPS + number, log_sum, mask=in_m)


@triton.jit(do_not_specialize=[*OF_BATCH, "query_blocks"])
def _training_to_queries(
    query, t_keys, t_values, a_keys, a_values, positions, after, least, result, sums, gradient, deltas, of_query,
    query_b, query_h, query_l, t_key_b, t_key_k, t_key_n, t_val_b, t_val_k, t_val_n,
    a_key_b, a_key_k, a_key_n, a_val_b, a_val_k, a_val_n, positions_b, after_b, gradient_b, gradient_l, gradient_h,
    length, window, a_num, key_heads, query_blocks, scale,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block: the gradient of BLOCK_M queries of a row's key head, from all keys that one of them sees."""
    pair, block = tl.program_id(0) // query_blocks, tl.program_id(0) % query_blocks
    row, head = (pair // key_heads).to(tl.int64), (pair % key_heads).to(tl.int64)
    at_n, at_d = tl.arange(0, BLOCK_N), tl.arange(0, SIZE)
    number, token, group, in_m = _of_block(block, length, GROUPS, BLOCK_M)
    at_query = query + row * query_b + head * GROUPS * query_h + (group * query_h + token * query_l)[:, None] + at_d[None, :]
    queries = tl.load(at_query, mask=in_m[:, None], other=0.0)
    at_gradient = gradient + row * gradient_b + head * GROUPS * gradient_h
    at_gradient += (group * gradient_h + token * gradient_l)[:, None] + at_d[None, :]
    gradients = tl.load(at_gradient, mask=in_m[:, None], other=0.0)
    heads = key_heads * GROUPS
    first = (row * length * heads + head * GROUPS) * SIZE
    place = ((token * heads + group) * SIZE)[:, None] + at_d[None, :]
    outputs = tl.load(result + first + place, mask=in_m[:, None], other=0.0)
    delta = tl.sum(gradients.to(tl.float32) * outputs.to(tl.float32), 1)
    folded = pair.to(tl.int64) * length * GROUPS
    tl.store(deltas + folded + number, delta, mask=in_m)
    log_sum = tl.load(sums + folded + number, mask=in_m, other=float("inf"))  # beyond the row all weights are 0
    position = tl.load(positions + row * positions_b + token, mask=in_m, other=-1)
    found = tl.zeros([BLOCK_M, SIZE], tl.float32)

    a_end, t_first, t_end = _reach(position, least + row, block, length, window, a_num, GROUPS, BLOCK_M, BLOCK_N)
    a_keys += row * a_key_b + head * a_key_k
    a_values += row * a_val_b + head * a_val_k
    after += row * after_b
    for start in range(0, a_end, BLOCK_N):
        key, value = _loaded(a_keys, a_values, start, a_end, a_key_n, a_val_n, BLOCK_N, SIZE)
        visible = _hears(position, tl.load(after + start + at_n, mask=start + at_n < a_end, other=NEVER))
        of_scores = _of_scores(queries, key, value, gradients, log_sum, delta, visible, scale, PRECISION)
        found += tl.dot(of_scores, key, input_precision=PRECISION)

    t_keys += row * t_key_b + head * t_key_k
    t_values += row * t_val_b + head * t_val_k
    for start in range(t_first, t_end, BLOCK_N):
        key, value = _loaded(t_keys, t_values, start, t_end, t_key_n, t_val_n, BLOCK_N, SIZE)
        visible = _reads(token, start + at_n, window)
        of_scores = _of_scores(queries, key, value, gradients, log_sum, delta, visible, scale, PRECISION)
        found += tl.dot(of_scores, key, input_precision=PRECISION)

    tl.store(of_query + first + place, (found * scale).to(of_query.dtype.element_ty), mask=in_m[:, None])


@triton.jit
def _hearing_tokens(positions, after, length):
    """The first token that sees one of these audio keys, and the one behind the last; the length and 0 where none does."""
    lowest = tl.min(after, 0)
    first, end = length + 0 * lowest, 0 * lowest
    for start in range(0, length, POSITIONS_AT_ONCE):
        token = start + tl.arange(0, POSITIONS_AT_ONCE)
        hears = tl.load(positions + token, mask=token < length, other=-1) > lowest
        first = tl.minimum(first, tl.min(tl.where(hears, token, length), 0))
        end = tl.maximum(end, tl.max(tl.where(hears, token + 1, 0), 0))
    return first, end


@triton.jit
def _to_keys(
    query, gradient, sums, deltas, positions, after, keys, values, of_keys, of_values,
    query_h, query_l, gradient_h, gradient_l, key_n, value_n, target_n, start, num, length, window, scale,
    IS_AUDIO: tl.constexpr, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of BLOCK_N keys and values; every pointer is at its row and head, those of gradients at the first key."""
    at_n, at_d = tl.arange(0, BLOCK_N), tl.arange(0, SIZE)
    in_n = start + at_n < num
    key, value = _loaded(keys, values, start, num, key_n, value_n, BLOCK_N, SIZE)
    of_key = tl.zeros([BLOCK_N, SIZE], tl.float32)
    of_value = tl.zeros([BLOCK_N, SIZE], tl.float32)
    seen_after = at_n
    if IS_AUDIO:
        seen_after = tl.load(after + start + at_n, mask=in_n, other=NEVER)
        first, end = _hearing_tokens(positions, seen_after, length)
    else:
        first, end = start, tl.minimum(start + BLOCK_N - 1 + window, length)
    for begin in range(first * GROUPS // BLOCK_M * BLOCK_M, end * GROUPS, BLOCK_M):
        number, token, group, in_m = _of_block(begin // BLOCK_M, length, GROUPS, BLOCK_M)
        at_query = query + (group * query_h + token * query_l)[:, None] + at_d[None, :]
        queries = tl.load(at_query, mask=in_m[:, None], other=0.0)
        at_gradient = gradient + (group * gradient_h + token * gradient_l)[:, None] + at_d[None, :]
        gradients = tl.load(at_gradient, mask=in_m[:, None], other=0.0)
        log_sum = tl.load(sums + number, mask=in_m, other=float("inf"))
        delta = tl.load(deltas + number, mask=in_m, other=0.0)
        # Keys by queries, so that what is multiplied next stays in registers.
        scores = tl.dot(key, tl.trans(queries), input_precision=PRECISION) * scale
        if IS_AUDIO:
            position = tl.load(positions + token, mask=in_m, other=-1)
            visible = position[None, :] > seen_after[:, None]
        else:
            behind = token[None, :] - (start + at_n)[:, None]
            visible = (behind >= 0) & (behind < window)
        weights = tl.where(visible, tl.exp(scores - log_sum[None, :]), 0.0)
        of_value += tl.dot(weights.to(gradients.dtype), gradients, input_precision=PRECISION)
        of_weights = tl.dot(value, tl.trans(gradients), input_precision=PRECISION)
        of_scores = weights * (of_weights - delta[None, :])
        of_key += tl.dot(of_scores.to(queries.dtype), queries, input_precision=PRECISION)
    place = (at_n * target_n)[:, None] + at_d[None, :]
    tl.store(of_keys + place, (of_key * scale).to(of_keys.dtype.element_ty), mask=in_n[:, None])
    tl.store(of_values + place, of_value.to(of_values.dtype.element_ty), mask=in_n[:, None])


@triton.jit(do_not_specialize=[*OF_BATCH, "a_blocks", "key_blocks"])
def _training_to_keys(
    query, t_keys, t_values, a_keys, a_values, positions, after, sums, gradient, deltas,
    of_t_keys, of_t_values, of_a_keys, of_a_values,
    query_b, query_h, query_l, t_key_b, t_key_k, t_key_n, t_val_b, t_val_k, t_val_n,
    a_key_b, a_key_k, a_key_n, a_val_b, a_val_k, a_val_n, positions_b, after_b, gradient_b, gradient_l, gradient_h,
    length, window, a_num, key_heads, a_blocks, key_blocks, scale,
    GROUPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block: the gradients of BLOCK_N keys, audio or text, of a row's key head, from all queries that see one of them."""
    pair, block = tl.program_id(0) // key_blocks, tl.program_id(0) % key_blocks
    row, head = (pair // key_heads).to(tl.int64), (pair % key_heads).to(tl.int64)
    query += row * query_b + head * GROUPS * query_h
    gradient += row * gradient_b + head * GROUPS * gradient_h
    sums += pair.to(tl.int64) * length * GROUPS
    deltas += pair.to(tl.int64) * length * GROUPS
    positions += row * positions_b
    target_n = key_heads * SIZE
    if block < a_blocks:
        start = block * BLOCK_N
        target = ((row * a_num + start) * key_heads + head) * SIZE
        _to_keys(
            query, gradient, sums, deltas, positions, after + row * after_b,
            a_keys + row * a_key_b + head * a_key_k, a_values + row * a_val_b + head * a_val_k,
            of_a_keys + target, of_a_values + target,
            query_h, query_l, gradient_h, gradient_l, a_key_n, a_val_n, target_n, start, a_num, length, window, scale,
            True, GROUPS, BLOCK_M, BLOCK_N, SIZE, PRECISION,
        )  # fmt: skip
    else:
        start = (block - a_blocks) * BLOCK_N
        target = ((row * length + start) * key_heads + head) * SIZE
        _to_keys(
            query, gradient, sums, deltas, positions, after,
            t_keys + row * t_key_b + head * t_key_k, t_values + row * t_val_b + head * t_val_k,
            of_t_keys + target, of_t_values + target,
            query_h, query_l, gradient_h, gradient_l, t_key_n, t_val_n, target_n, start, length, length, window, scale,
            False, GROUPS, BLOCK_M, BLOCK_N, SIZE, PRECISION,
        )  # fmt: skip


def training_attention(
    query_BHLd: Tensor, text: tuple[Tensor, Tensor], audio: tuple[Tensor, Tensor], bounds: tuple[Tensor, Tensor, Tensor],
    window: int | None, scale: float,
) -> Tensor:  # fmt: skip
    """One softmax over audio and text for every token, with gradients of queries, keys and values.

    Args:
        query_BHLd: d is a power of 2 from 16 on; all tensors are of its dtype.
        text: keys and values (B, K, L, d).
        audio: rotated keys and values (B, K, A, d) of each row.
        bounds: positions of text (B, L); the position (B, A) behind which text sees a key; its least (B,). All int32.
        window: how many columns of text a token sees, its own included; None: all.
        scale: of the scores.

    Returns:
        (B, L, H, d).
    """
    output: Tensor = _forward(query_BHLd, *text, *audio, *bounds, window, scale)[0]
    return output


# Operators for torch.compile, which then neither reads the kernels nor copies what they read.
@torch.library.custom_op("pal_audio::training_attention", mutates_args=())
def _forward(
    query: Tensor, text_keys: Tensor, text_values: Tensor, audio_keys: Tensor, audio_values: Tensor, positions: Tensor,
    after: Tensor, least: Tensor, window: int | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output (B, L, H, d), and the logarithm of each query's sum of weights (B, K, L * G) in float32."""
    heads = _Heads(query, text_keys, text_values, audio_keys, audio_values, positions, after, window, scale)
    result, sums = _by_token(query, text_keys)
    with torch.cuda.device_of(query):
        heads.attend(least, result, sums)
    return result, sums


@_forward.register_fake
def _by_token(query: Tensor, text_keys: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    rows, heads, length, size = query.shape
    key_heads = text_keys.shape[1]
    return (
        query.new_empty((rows, length, heads, size)),
        query.new_empty((rows, key_heads, length * (heads // key_heads)), dtype=torch.float32),
    )


@torch.library.custom_op("pal_audio::training_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, query: Tensor, text_keys: Tensor, text_values: Tensor, audio_keys: Tensor, audio_values: Tensor,
    positions: Tensor, after: Tensor, least: Tensor, result: Tensor, sums: Tensor, window: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients as products made what they are of: tokens before heads, (B, L, H, d) and (B, N, K, d)."""
    heads = _Heads(query, text_keys, text_values, audio_keys, audio_values, positions, after, window, scale)
    gradient, deltas = _rows(gradient), torch.empty_like(sums)
    made = _tokens_first(gradient, query, text_keys, text_values, audio_keys, audio_values)
    with torch.cuda.device_of(query):
        heads.differentiate_queries(least, result, sums, gradient, deltas, made[0])
        heads.differentiate_keys(sums, gradient, deltas, *made[1:])
    return made


@_backward.register_fake
def _tokens_first(
    gradient: Tensor, query: Tensor, text_keys: Tensor, text_values: Tensor, audio_keys: Tensor, audio_values: Tensor,
    *others: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    def like(heads: Tensor) -> Tensor:
        rows, number, length, size = heads.shape
        return heads.new_empty((rows, length, number, size))

    return like(query), like(text_keys), like(text_values), like(audio_keys), like(audio_values)


def _keep(ctx, inputs, output) -> None:
    *tensors, window, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = window, scale


def _gradients(ctx, gradient, of_sums):
    made = _backward(gradient, *ctx.saved_tensors, *ctx.options)
    return *(heads.transpose(1, 2) for heads in made), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
PRODUCTS.append(torch.ops.pal_audio.training_attention.default)


class _Heads:
    """Queries, keys and values as the kernels take them, and their launches."""

    def __init__(
        self, query: Tensor, text_keys: Tensor, text_values: Tensor, audio_keys: Tensor, audio_values: Tensor,
        positions: Tensor, after: Tensor, window: int | None, scale: float,
    ) -> None:  # fmt: skip
        rows, heads, self.length, self.size = query.shape
        key_heads, num_audio = audio_keys.shape[1:3]
        assert text_keys.shape == text_values.shape == (rows, key_heads, self.length, self.size)
        assert audio_keys.shape == audio_values.shape == (rows, key_heads, num_audio, self.size)
        assert positions.shape == (rows, self.length)
        assert after.shape == (rows, num_audio)
        assert {text_keys.dtype, text_values.dtype, audio_keys.dtype, audio_values.dtype} == {query.dtype}
        assert self.size == power_of_2(self.size) >= 16
        self.groups, self.pairs, self.scale = heads // key_heads, rows * key_heads, scale
        sides = [_rows(side) for side in (query, text_keys, text_values, audio_keys, audio_values)]
        positions, after = _rows(positions), _rows(after)
        self.tensors = *sides, positions, after
        self.strides = *(side.stride(axis) for side in sides for axis in range(3)), positions.stride(0), after.stride(0)
        self.numbers = self.length, min(window or self.length, self.length), num_audio, key_heads
        self.precision = "ieee" if query.dtype == torch.float32 else "tf32"

    def attend(self, least: Tensor, result: Tensor, sums: Tensor) -> None:
        """Write the output, and the logarithm of each query's sum of weights."""
        cut = self._cut(FORWARD)
        blocks = parts(self.groups * self.length, cut.queries)
        _training_forward[(self.pairs * blocks,)](
            *self.tensors, least, result, sums, *self.strides, *self.numbers, blocks, self.scale, **self._constants(cut)
        )

    def differentiate_queries(
        self, least: Tensor, result: Tensor, sums: Tensor, gradient: Tensor, deltas: Tensor, of_query: Tensor
    ) -> None:
        """Write the gradient of the queries, and `deltas` for `differentiate_keys`."""
        cut = self._cut(TO_QUERIES)
        blocks = parts(self.groups * self.length, cut.queries)
        _training_to_queries[(self.pairs * blocks,)](
            *self.tensors, least, result, sums, gradient, deltas, of_query, *self.strides, *gradient.stride()[:3],
            *self.numbers, blocks, self.scale, **self._constants(cut),
        )  # fmt: skip

    def differentiate_keys(self, sums: Tensor, gradient: Tensor, deltas: Tensor, *made: Tensor) -> None:
        """Write the gradients of keys and values, text's before audio's."""
        cut = self._cut(TO_KEYS)
        audio_blocks = parts(self.numbers[2], cut.keys)
        blocks = audio_blocks + parts(self.length, cut.keys)
        _training_to_keys[(self.pairs * blocks,)](
            *self.tensors, sums, gradient, deltas, *made, *self.strides, *gradient.stride()[:3], *self.numbers,
            audio_blocks, blocks, self.scale, **self._constants(cut),
        )  # fmt: skip

    def _cut(self, table: dict[int, Blocks]) -> Blocks:
        return IN_FLOAT32 if self.precision == "ieee" else next(cut for widest, cut in table.items() if self.size <= widest)

    def _constants(self, cut: Blocks) -> dict[str, int | str]:
        """What a kernel is compiled for."""
        return {
            "GROUPS": self.groups, "BLOCK_M": cut.queries, "BLOCK_N": cut.keys, "SIZE": self.size, "PRECISION": self.precision,
            "num_warps": cut.warps, "num_stages": cut.stages,
        }  # fmt: skip


def _rows(tensor: Tensor) -> Tensor:
    """The tensor with its last axis side by side in memory, as it is where it has come from a product."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
