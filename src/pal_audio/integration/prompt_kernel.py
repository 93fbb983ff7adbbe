"""The attention of a prompt to [audio | text] as a Triton kernel: nothing is joined, repeated or masked beforehand.

    block (row, key head, queries, keys) ──► audio keys, then text keys, one running softmax ──► output, or a part of it

The queries of all heads that share a key head lie side by side, token after token, so that a block of them stands at few
tokens. What a token sees follows from positions alone, so there is no mask: an audio key from a position on; text before the
token, within its window, that is no padding; itself in any case. Where rows and heads do not fill the device, keys are shared
out to more blocks and joined by `decode_kernel.combine`. Audio keys may come un-rotated, as in that kernel, and audio of all
rows is read where it lies. Source: our choice, after FlashAttention (arXiv 2307.08691).

Shapes: B rows, L tokens, H query heads, K key heads, G = H / K, A audio keys, S pieces, d head width.
"""

# mypy: disable-error-code="import-not-found, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from pal_audio.integration.decode_kernel import _finished, _taken_in, _turned, combine, parts, power_of_2
from pal_audio.integration.prompt_attention import PromptAudio, PromptText

QUERIES_AT_ONCE = 64
KEYS_AT_ONCE = 64
FULL_DEVICE = 264  # blocks: two for each multiprocessor of a large GPU
NEVER = tl.constexpr(torch.iinfo(torch.int32).max)


@triton.jit
def _scores(query_1, query_2, key_1, key_2, scale, PRECISION: tl.constexpr):
    """(M, N) scores of queries and keys that come as halves of their heads."""
    scores = tl.dot(query_1, tl.trans(key_1), input_precision=PRECISION)
    scores += tl.dot(query_2, tl.trans(key_2), input_precision=PRECISION)
    return scores * scale


@triton.jit
def _attend_prompt(
    query, result, sums, positions, query_b, query_h, query_l, positions_b,
    a_keys, a_values, after, least, cos, sin, a_num, a_pieces, a_key_b, a_key_k, a_key_n, a_val_b, a_val_k, a_val_n,
    after_b, cos_b,
    t_keys, t_values, seen, length, window, t_key_b, t_key_k, t_key_n, t_val_b, t_val_k, t_val_n, seen_b,
    scale, key_heads, query_blocks, piece, num_pieces,
    SPLIT: tl.constexpr, ROTATE: tl.constexpr, PADDED: tl.constexpr, GROUPS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block: BLOCK_M queries of a row's key head, and all keys or (SPLIT) a piece of them, audio or text."""
    half: tl.constexpr = SIZE // 2
    pair, block = tl.program_id(0) // query_blocks, tl.program_id(0) % query_blocks
    row, head = (pair // key_heads).to(tl.int64), (pair % key_heads).to(tl.int64)
    number = block * BLOCK_M + tl.arange(0, BLOCK_M)  # query m of a key head is group m % G of token m // G
    token, group = number // GROUPS, number % GROUPS
    in_m = token < length
    first_token = block * BLOCK_M // GROUPS
    last_token = tl.minimum((block * BLOCK_M + BLOCK_M - 1) // GROUPS, length - 1)
    at_n, at_d, at_h = tl.arange(0, BLOCK_N), tl.arange(0, SIZE), tl.arange(0, SIZE // 2)

    which = query + row * query_b + (head * GROUPS + group)[:, None] * query_h + token[:, None] * query_l + at_h[None, :]
    query_1 = tl.load(which, mask=in_m[:, None], other=0.0)
    query_2 = tl.load(which + half, mask=in_m[:, None], other=0.0)
    position = tl.load(positions + row * positions_b + token, mask=in_m, other=-1)
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    output = tl.zeros([BLOCK_M, SIZE], tl.float32)

    a_first, a_end, t_first, t_end = 0, a_num, 0, last_token + 1
    if SPLIT:  # behind the last piece of audio none is left
        a_first = tl.program_id(1) * piece
        a_end = tl.minimum(a_first + piece, a_num)
        t_first = tl.maximum(tl.program_id(1) - a_pieces, 0) * piece
        t_end = tl.where(tl.program_id(1) < a_pieces, 0, tl.minimum(t_first + piece, t_end))
    t_first = tl.maximum(t_first, tl.maximum(first_token - window + 1, 0) // BLOCK_N * BLOCK_N)
    # A block of tokens before the row's first marker sees no audio.
    a_end = tl.where(tl.max(position, 0) > tl.load(least + row), a_end, 0)

    a_keys += row * a_key_b + head * a_key_k
    a_values += row * a_val_b + head * a_val_k
    after += row * after_b
    for start in range(a_first, a_end, BLOCK_N):
        key = start + at_n
        in_n = key < a_end
        at_key = a_keys + key[:, None] * a_key_n + at_h[None, :]
        if ROTATE:
            place = row * cos_b + key[:, None] * SIZE + at_h[None, :]
            key_1, key_2 = _turned(at_key, cos + place, sin + place, half, in_n)
        else:
            key_1 = tl.load(at_key, mask=in_n[:, None], other=0.0)
            key_2 = tl.load(at_key + half, mask=in_n[:, None], other=0.0)
        visible = position[:, None] > tl.load(after + key, mask=in_n, other=NEVER)[None, :]
        scores = tl.where(visible, _scores(query_1, query_2, key_1, key_2, scale, PRECISION), float("-inf"))
        value = tl.load(a_values + key[:, None] * a_val_n + at_d[None, :], mask=in_n[:, None], other=0.0)
        highest, total, output = _taken_in(scores, value, highest, total, output, PRECISION)

    t_keys += row * t_key_b + head * t_key_k
    t_values += row * t_val_b + head * t_val_k
    for start in range(t_first, t_end, BLOCK_N):
        key = start + at_n
        in_n = key < t_end
        at_key = t_keys + key[:, None] * t_key_n + at_h[None, :]
        key_1 = tl.load(at_key, mask=in_n[:, None], other=0.0)
        key_2 = tl.load(at_key + half, mask=in_n[:, None], other=0.0)
        behind = token[:, None] - key[None, :]
        visible = (behind >= 0) & (behind < window) & in_n[None, :]
        if PADDED:  # padding sees itself
            is_text = tl.load(seen + row * seen_b + key, mask=in_n, other=0) != 0
            visible = visible & (is_text[None, :] | (behind == 0))
        scores = tl.where(visible, _scores(query_1, query_2, key_1, key_2, scale, PRECISION), float("-inf"))
        value = tl.load(t_values + key[:, None] * t_val_n + at_d[None, :], mask=in_n[:, None], other=0.0)
        highest, total, output = _taken_in(scores, value, highest, total, output, PRECISION)

    output, lse = _finished(highest, total, output)
    target = (row * length + token) * (key_heads * GROUPS) + head * GROUPS + group
    if SPLIT:
        target = target * num_pieces + tl.program_id(1)
        tl.store(sums + target, lse, mask=in_m)
    tl.store(result + target[:, None] * SIZE + at_d[None, :], output.to(result.dtype.element_ty), mask=in_m[:, None])


def prompt_attention(query_BHLd: Tensor, text: PromptText, audio: PromptAudio, scale: float) -> Tensor:
    """One softmax over audio and text for every token of a prompt.

    Args:
        query_BHLd: queries in the keys' dtype; d is a power of 2.
        text: of each row.
        audio: of each row or of all rows.
        scale: of the scores.

    Returns:
        (B, L, H, d) in the values' dtype.
    """
    output: Tensor = _operator(
        query_BHLd, text.keys, text.values, text.seen_BL, text.window, audio.keys, audio.values, audio.positions_BL,
        audio.after_BA, audio.least_B, *(audio.tables or (None, None)), scale,
    )  # fmt: skip
    return output


# One operator for torch.compile, which then neither reads the kernels nor copies what they read.
@torch.library.custom_op("pal_audio::prompt_attention", mutates_args=())
def _operator(
    query: Tensor, text_keys: Tensor, text_values: Tensor, seen: Tensor | None, window: int | None, audio_keys: Tensor,
    audio_values: Tensor, positions: Tensor, after: Tensor, least: Tensor, cos: Tensor | None, sin: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    text = PromptText(text_keys, text_values, seen, window)
    tables = None if cos is None or sin is None else (cos, sin)
    return _launch(query, text, PromptAudio(audio_keys, audio_values, positions, after, least, tables), scale)


@_operator.register_fake
def _by_token(query: Tensor, text_keys: Tensor, text_values: Tensor, *others: object) -> Tensor:
    rows, heads, length, size = query.shape
    return query.new_empty((rows, length, heads, size), dtype=text_values.dtype)


def piece_length(num_blocks: int, num_keys: int) -> int | None:
    """Keys of one block, so that blocks fill the device; None: all keys, as there are enough blocks without more."""
    if num_blocks >= FULL_DEVICE:
        return None
    return parts(num_keys * num_blocks, FULL_DEVICE * KEYS_AT_ONCE) * KEYS_AT_ONCE


def _launch(query: Tensor, text: PromptText, audio: PromptAudio, scale: float) -> Tensor:
    rows, heads, length, size = query.shape
    key_heads, num_audio = audio.keys.shape[1:3]
    groups = heads // key_heads
    assert text.keys.shape[2] == length
    assert size == power_of_2(size)
    assert audio.after_BA.stride(1) == 1
    assert all(side.stride(3) == 1 for side in (query, text.keys, text.values, audio.keys, audio.values))
    block_m = min(QUERIES_AT_ONCE, max(16, power_of_2(groups * length)))
    query_blocks = parts(groups * length, block_m)
    num_blocks = rows * key_heads * query_blocks
    piece = piece_length(num_blocks, num_audio + length)
    a_pieces, t_pieces = (0, 1) if piece is None else (parts(num_audio, piece), parts(length, piece))
    num_pieces = a_pieces + t_pieces
    result = query.new_empty((rows, length, heads, size), dtype=text.values.dtype)
    outputs, sums = result, result  # the latter is not written to
    if piece is not None:
        outputs = query.new_empty((rows, length, heads, num_pieces, size), dtype=torch.float32)
        sums = query.new_empty((rows, length, heads, num_pieces), dtype=torch.float32)
    cos, sin = (audio.keys, audio.keys) if audio.tables is None else audio.tables  # in the first case not read
    seen = audio.after_BA if text.seen_BL is None else text.seen_BL
    wide = size * query.element_size()  # bytes of a key: of wide ones fewer fit into a multiprocessor
    _attend_prompt[(num_blocks, num_pieces)](
        query, outputs, sums, audio.positions_BL, query.stride(0), query.stride(1), query.stride(2), audio.positions_BL.stride(0),
        audio.keys, audio.values, audio.after_BA, audio.least_B, cos, sin, num_audio, a_pieces,
        _row_stride(audio.keys), audio.keys.stride(1), audio.keys.stride(2),
        _row_stride(audio.values), audio.values.stride(1), audio.values.stride(2),
        audio.after_BA.stride(0), _row_stride(cos),
        text.keys, text.values, seen, length, length if text.window is None else text.window,
        text.keys.stride(0), text.keys.stride(1), text.keys.stride(2),
        text.values.stride(0), text.values.stride(1), text.values.stride(2), seen.stride(0),
        scale, key_heads, query_blocks, 0 if piece is None else piece, num_pieces,
        SPLIT=piece is not None, ROTATE=audio.tables is not None, PADDED=text.seen_BL is not None, GROUPS=groups,
        BLOCK_M=block_m, BLOCK_N=KEYS_AT_ONCE if wide <= 256 else KEYS_AT_ONCE // 2, SIZE=size,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4 if size <= 64 else 8, num_stages=2,  # so that three blocks of heads of 64 fit into a multiprocessor
    )  # fmt: skip
    if piece is not None:
        combine(outputs, sums, result)
    return result


def _row_stride(tensor: Tensor) -> int:
    """0 where all rows share one."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
