"""The attention of one new token as a Triton kernel: all keys and values are read once, in pieces that many blocks share.

    block (row, key head, piece) ──► scores, partial softmax, partial output ──► `_combine`: one softmax over all pieces

Audio and text lie in different tensors and are pieces of one launch. Audio keys may come un-rotated: they are rotated in
registers, so that a memory is read where it lies and no rotated copy of it exists. Keys that all rows share are read by a
launch of their own with all rows' queries side by side. Source: flash decoding (pytorch.org/blog/flash-decoding) for the
pieces; the rest is our choice.

Shapes: B rows, H query heads, K key heads, G = H / K, M queries of a key head, T text keys, A audio keys, S pieces, d head width.
"""

# mypy: disable-error-code="import-not-found, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from pal_audio.integration.decode_attention import Keys

KEYS_AT_ONCE = 64
MAX_PIECE = 512
BLOCKS = 512  # wanted: a few for each multiprocessor of a large GPU
COMBINED_NUMBERS = 512  # of the result, of one block


@triton.jit
def _turned(keys, cos, sin, half: tl.constexpr, in_n):
    """Both halves of un-rotated keys, rotated; pointers are to the first half of each key and its place in the tables."""
    key_1 = tl.load(keys, mask=in_n[:, None], other=0.0)
    key_2 = tl.load(keys + half, mask=in_n[:, None], other=0.0)
    c = tl.load(cos, mask=in_n[:, None], other=0.0).to(tl.float32)
    s = tl.load(sin, mask=in_n[:, None], other=0.0).to(tl.float32)
    one, two = key_1.to(tl.float32), key_2.to(tl.float32)
    return (one * c - two * s).to(key_1.dtype), (two * c + one * s).to(key_1.dtype)


@triton.jit
def _weighed(scores, highest, total):
    """A running softmax after further scores: its highest, sum of weights, what shrinks all before, and the new weights."""
    new = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(new == float("-inf"), 0.0, new)
    shrink = tl.exp(highest - base)
    weights = tl.exp(scores - base[:, None])
    return new, total * shrink + tl.sum(weights, 1), shrink, weights


@triton.jit
def _taken_in(scores, value, highest, total, output, PRECISION: tl.constexpr):
    """A running softmax after further keys: its highest score, sum of weights and output (not divided by that sum)."""
    highest, total, shrink, weights = _weighed(scores, highest, total)
    output = output * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return highest, total, output


@triton.jit
def _finished(highest, total, output):
    """What a running softmax gives, and the logarithm of its sum; zeros and -inf where no key was seen."""
    return output / tl.where(total == 0.0, 1.0, total)[:, None], tl.where(total == 0.0, float("-inf"), highest + tl.log(total))


@triton.jit
def _piece(
    query, mask_m, keys, values, seen, cos, sin, first, num_keys,
    keys_stride, values_stride, scale,
    ROTATE: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial attention of BLOCK_M queries to PIECE keys; `seen` points to each query's row of the mask."""
    half: tl.constexpr = SIZE // 2
    at_n, at_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    in_d = at_d < SIZE
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    output = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if ROTATE:
        at_h = tl.arange(0, BLOCK_D // 2)
        query_1 = tl.load(query[:, None] + at_h[None, :], mask=mask_m[:, None], other=0.0)
        query_2 = tl.load(query[:, None] + half + at_h[None, :], mask=mask_m[:, None], other=0.0)
    else:
        whole = tl.load(query[:, None] + at_d[None, :], mask=mask_m[:, None] & in_d[None, :], other=0.0)
    for start in range(0, tl.minimum(PIECE, num_keys - first), BLOCK_N):
        number = first + start + at_n
        in_n = number < num_keys
        if ROTATE:
            row = keys + number[:, None] * keys_stride + at_h[None, :]
            place = number[:, None] * SIZE + at_h[None, :]
            turned_1, turned_2 = _turned(row, cos + place, sin + place, half, in_n)
            scores = tl.dot(query_1, tl.trans(turned_1), input_precision=PRECISION)
            scores += tl.dot(query_2, tl.trans(turned_2), input_precision=PRECISION)
        else:
            row = keys + number[:, None] * keys_stride + at_d[None, :]
            key = tl.load(row, mask=in_n[:, None] & in_d[None, :], other=0.0)
            scores = tl.dot(whole, tl.trans(key), input_precision=PRECISION)
        visible = tl.load(seen[:, None] + number[None, :], mask=mask_m[:, None] & in_n[None, :], other=0)
        scores = tl.where(visible != 0, scores * scale, float("-inf"))
        value_row = values + number[:, None] * values_stride + at_d[None, :]
        value = tl.load(value_row, mask=in_n[:, None] & in_d[None, :], other=0.0)
        highest, total, output = _taken_in(scores, value, highest, total, output, PRECISION)
    return _finished(highest, total, output)


@triton.jit
def _attend(
    query, outputs, sums, first_piece, num_pieces,
    a_keys, a_values, a_seen, a_cos, a_sin, a_num, a_pieces, a_key_b, a_key_k, a_key_n, a_val_b, a_val_k, a_val_n, a_cos_b,
    t_keys, t_values, t_seen, t_num, t_key_b, t_key_k, t_key_n, t_val_b, t_val_k, t_val_n,
    scale, key_heads, num_queries,
    ROTATE: tl.constexpr, GROUPS: tl.constexpr, PIECE: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block: key head `pid 0` of a row (or of all rows), a piece of audio or of text, BLOCK_M of its queries."""
    pair, piece = tl.program_id(0), tl.program_id(1)
    batch, head = pair // key_heads, pair % key_heads
    number = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)  # query m of a key head is group m % G of row m // G
    mask_m = number < num_queries
    row = batch * (num_queries // GROUPS) + number // GROUPS
    flat = row * (key_heads * GROUPS) + head * GROUPS + number % GROUPS
    where = query + flat * SIZE
    at_d = tl.arange(0, BLOCK_D)
    if piece < a_pieces:
        output, lse = _piece(
            where, mask_m,
            a_keys + batch.to(tl.int64) * a_key_b + head.to(tl.int64) * a_key_k,
            a_values + batch.to(tl.int64) * a_val_b + head.to(tl.int64) * a_val_k,
            a_seen + row * a_num, a_cos + batch.to(tl.int64) * a_cos_b, a_sin + batch.to(tl.int64) * a_cos_b,
            piece * PIECE, a_num, a_key_n, a_val_n, scale,
            ROTATE, PIECE, BLOCK_N, BLOCK_M, SIZE, BLOCK_D, PRECISION,
        )  # fmt: skip
    else:
        output, lse = _piece(
            where, mask_m,
            t_keys + batch.to(tl.int64) * t_key_b + head.to(tl.int64) * t_key_k,
            t_values + batch.to(tl.int64) * t_val_b + head.to(tl.int64) * t_val_k,
            t_seen + row * t_num, t_seen, t_seen,
            (piece - a_pieces) * PIECE, t_num, t_key_n, t_val_n, scale,
            False, PIECE, BLOCK_N, BLOCK_M, SIZE, BLOCK_D, PRECISION,
        )  # fmt: skip
    target = flat * num_pieces + first_piece + piece
    tl.store(sums + target, lse, mask=mask_m)
    tl.store(outputs + target[:, None] * SIZE + at_d[None, :], output, mask=mask_m[:, None] & (at_d < SIZE)[None, :])


@triton.jit
def _combine(
    outputs, sums, result, num_queries, num_pieces,
    BLOCK_Q: tl.constexpr, BLOCK_S: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All pieces of each of BLOCK_Q queries as one softmax."""
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_s, at_d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    in_q, in_d = query < num_queries, at_d < SIZE
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    output = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, num_pieces, BLOCK_S):  # sums and outputs are loaded at once: one wait where all pieces fit
        in_qs = in_q[:, None] & (start + at_s < num_pieces)[None, :]
        place = query[:, None] * num_pieces + (start + at_s)[None, :]
        lse = tl.load(sums + place, mask=in_qs, other=float("-inf"))
        part = tl.load(
            outputs + place[:, :, None] * SIZE + at_d[None, None, :], mask=in_qs[:, :, None] & in_d[None, None, :], other=0.0
        )
        highest, total, shrink, weights = _weighed(lse, highest, total)
        output = output * shrink[:, None] + tl.sum(weights[:, :, None] * part, 1)
    output = (output / total[:, None]).to(result.dtype.element_ty)
    tl.store(result + query[:, None] * SIZE + at_d[None, :], output, mask=in_q[:, None] & in_d[None, :])


def parts(whole: int, part: int) -> int:
    """How many parts make up a whole."""
    return -(-whole // part)


def power_of_2(number: int) -> int:
    """The least that is not smaller."""
    return 1 << (number - 1).bit_length()


def one_query_attention(query_BHd: Tensor, text: Keys, audio: Keys | None, scale: float) -> Tensor:
    """As `decode_attention.one_query_attention`: one softmax over text and, if there is any, audio.

    Args:
        query_BHd: queries in the keys' dtype.
        text: of each row; every row sees at least one key.
        audio: of each row or of all rows.
        scale: of the scores.

    Returns:
        (B, H, d) in the values' dtype.
    """
    given = (None,) * 5 if audio is None else (audio.keys, audio.values, audio.seen_BT, *(audio.tables or (None, None)))
    output: Tensor = _operator(query_BHd, text.keys, text.values, text.seen_BT, *given, scale)
    return output


# One operator for torch.compile, which then neither reads the kernels nor copies what they read.
@torch.library.custom_op("pal_audio::one_query_attention", mutates_args=())
def _operator(
    query: Tensor, text_keys: Tensor, text_values: Tensor, text_seen: Tensor, audio_keys: Tensor | None,
    audio_values: Tensor | None, audio_seen: Tensor | None, cos: Tensor | None, sin: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    text, audio = Keys(text_keys, text_values, text_seen), None
    if audio_keys is not None and audio_values is not None and audio_seen is not None:
        audio = Keys(audio_keys, audio_values, audio_seen, None if cos is None or sin is None else (cos, sin))
    return _by_pieces(query.contiguous(), text, audio, scale)


@_operator.register_fake
def _like_query(query: Tensor, text_keys: Tensor, text_values: Tensor, *others: object) -> Tensor:
    return query.new_empty(query.shape, dtype=text_values.dtype)


def _by_pieces(query_BHd: Tensor, text: Keys, audio: Keys | None, scale: float) -> Tensor:
    rows, heads = query_BHd.shape[:2]
    key_heads = text.keys.shape[1]
    is_shared = audio is not None and audio.keys.shape[0] < rows
    num_text = text.keys.shape[2]
    num_audio = 0 if audio is None else audio.keys.shape[2]
    piece = piece_length(rows * key_heads, num_text + (0 if is_shared else num_audio))
    num_tiles = parts(heads // key_heads * rows, 64) if is_shared else 1
    audio_piece = piece_length(key_heads * num_tiles, num_audio) if is_shared else piece
    text_pieces, audio_pieces = parts(num_text, piece), parts(num_audio, audio_piece)
    num_pieces = text_pieces + audio_pieces
    outputs = query_BHd.new_empty((*query_BHd.shape[:2], num_pieces, query_BHd.shape[2]), dtype=torch.float32)
    sums = query_BHd.new_empty((*query_BHd.shape[:2], num_pieces), dtype=torch.float32)
    if audio is not None and is_shared:
        _launch(query_BHd, outputs, sums, 0, audio, None, audio_piece, scale, 1)
        _launch(query_BHd, outputs, sums, audio_pieces, None, text, piece, scale, rows)
    else:
        _launch(query_BHd, outputs, sums, 0, audio, text, piece, scale, rows)
    result = query_BHd.new_empty(query_BHd.shape, dtype=text.values.dtype)
    combine(outputs, sums, result)
    return result


def combine(outputs: Tensor, sums: Tensor, result: Tensor) -> None:
    """One softmax of all pieces, into `result`.

    Args:
        outputs: (..., S, d) of each query and piece, float32, contiguous.
        sums: (..., S) logarithms of the sums of exponentials.
        result: (..., d), contiguous.
    """
    num_pieces, size = outputs.shape[-2:]
    num_queries, width = sums.numel() // num_pieces, power_of_2(size)
    at_once = max(1, COMBINED_NUMBERS // width)
    _combine[(parts(num_queries, at_once),)](
        outputs, sums, result, num_queries, num_pieces, BLOCK_Q=at_once, BLOCK_S=16, SIZE=size, BLOCK_D=width
    )  # fmt: skip


def piece_length(num_pairs: int, num_keys: int) -> int:
    """Keys of one block, so that there are enough blocks for the device and none is small without need."""
    wanted = max(1, num_keys * num_pairs // BLOCKS)
    return int(min(MAX_PIECE, max(KEYS_AT_ONCE, power_of_2(wanted))))


def _launch(
    query: Tensor, outputs: Tensor, sums: Tensor, first_piece: int, audio: Keys | None, text: Keys | None, piece: int,
    scale: float, batches: int,
) -> None:  # fmt: skip
    rows, heads, size = query.shape
    any_keys = text if audio is None else audio
    assert any_keys is not None
    assert any_keys.keys.stride(3) == any_keys.values.stride(3) == 1
    key_heads = any_keys.keys.shape[1]
    groups = heads // key_heads
    num_queries = groups * (rows // batches)
    block_m = min(64, max(16, power_of_2(num_queries)))
    a, t = (any_keys if one is None else one for one in (audio, text))  # a missing one has no piece and is not read
    a_pieces = 0 if audio is None else parts(a.keys.shape[2], piece)
    t_pieces = 0 if text is None else parts(t.keys.shape[2], piece)
    rotate = audio is not None and audio.tables is not None
    cos, sin = audio.tables if audio is not None and audio.tables is not None else (a.keys, a.keys)
    cos_stride = 0 if cos.shape[0] == 1 else cos.stride(0)
    grid = (batches * key_heads, a_pieces + t_pieces, parts(num_queries, block_m))
    _attend[grid](
        query, outputs, sums, first_piece, outputs.shape[2],
        a.keys, a.values, a.seen_BT, cos, sin, a.keys.shape[2], a_pieces,
        a.keys.stride(0), a.keys.stride(1), a.keys.stride(2), a.values.stride(0), a.values.stride(1), a.values.stride(2),
        cos_stride,
        t.keys, t.values, t.seen_BT, t.keys.shape[2],
        t.keys.stride(0), t.keys.stride(1), t.keys.stride(2), t.values.stride(0), t.values.stride(1), t.values.stride(2),
        scale, key_heads, num_queries,
        ROTATE=rotate, GROUPS=groups, PIECE=piece, BLOCK_N=KEYS_AT_ONCE, BLOCK_M=block_m, SIZE=size,
        BLOCK_D=power_of_2(size), PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
    )  # fmt: skip
