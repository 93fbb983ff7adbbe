"""What an integration costs, counted from sizes alone: floating-point operations, parameters, bytes. No torch, no measurement.

    LlmShape, AudioShape ─┐
    Work ─────────────────┴─► forward_flops, backward_flops, num_parameters, kv_bytes, memory_bytes, ...

Counted are matrix products (a multiplication and an addition are two operations), as torch's FlopCounterMode does with the
plain attention kernel; the tests hold both equal. Attention is counted over all pairs, masked ones included: that is what
a kernel with a mask computes. Norms, activations and softmax are left out.

Source: our choice; the costs of the integrations follow arXiv 2506.10423v3.
Letters: D width, F width of the feed-forward, H query heads, K key/value heads, d head width, V vocabulary.
"""

from dataclasses import dataclass, field

INTEGRATIONS = ("text", "plits", "lal", "pal")
COUNTED = (*INTEGRATIONS, "flamingo")  # the last is a baseline, counted where it is asked for


@dataclass(frozen=True)
class LlmShape:
    """Sizes of a decoder of the Llama kind: gated feed-forward, grouped heads, rotary positions."""

    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    kv_bias: bool = False

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, and of the values, of one token in one layer."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_products(self) -> int:
        """Multiplications of one token in the linear maps of one layer; its weights without biases and norms."""
        return self.hidden_size * (2 * self.query_size + 2 * self.kv_size + 3 * self.ffn_size)

    @property
    def num_parameters(self) -> int:
        biases = self.query_size + 2 * self.kv_size if self.kv_bias else 0
        layer = self.layer_products + biases + 2 * self.hidden_size
        return self.num_layers * layer + self.hidden_size + self.vocab_size * self.hidden_size * (1 if self.tied else 2)


@dataclass(frozen=True)
class EncoderCost:
    """An encoder as far as cost goes; the default is one whose frames are given."""

    num_parameters: int = 0
    flops_per_clip: int = 0


@dataclass(frozen=True)
class Mlp:
    """The `mlp` connector: `stride` frames stacked, two linear maps."""

    frame_size: int
    stride: int = 2

    def flops(self, width: int, num_tokens: int) -> int:
        """Of one clip of `num_tokens` audio tokens into an LLM of this width."""
        return 2 * num_tokens * (self.stride * self.frame_size * width + width * width)

    def num_parameters(self, width: int) -> int:
        size = self.stride * self.frame_size
        head = width + 1  # scale and time gain
        return 2 * size + size * width + width + width * width + width + head


@dataclass(frozen=True)
class Qformer:
    """The `qformer` connector over frames as wide as its layers."""

    queries: int
    frame_size: int
    num_heads: int
    num_layers: int = 2

    def flops(self, width: int, num_frames: int) -> int:
        """Of one clip of `num_frames` frames."""
        size, queries = self.frame_size, self.queries
        own = 4 * size * size * queries + 2 * size * queries * queries
        if self.num_heads * queries < size:  # frames are read as they are
            cross = 4 * size * size * queries + 2 * self.num_heads * queries * size * num_frames
        else:
            cross = size * size * (2 * queries + 2 * num_frames) + 2 * size * queries * num_frames
        layer = own + cross + 8 * size * size * queries
        return 2 * (num_frames * size * size + self.num_layers * layer + queries * size * width)

    def num_parameters(self, width: int) -> int:
        size = self.frame_size
        attention = 2 * size + 4 * size * size + 4 * size
        layer = 2 * attention + 2 * size + 8 * size * size + 5 * size
        frames = 2 * size + size * size + size + 2 * size
        return self.queries * size + frames + 1 + self.num_layers * layer + 2 * size + size * width + width + width


@dataclass(frozen=True)
class Work:
    """One batch: what enters, and what is trained.

    Attributes:
        integration: one of `COUNTED`.
        batch: rows, one clip each.
        text_tokens: of a row, the marker included.
        audio_tokens: of a clip.
        logits: positions of a row that get logits.
        connector: of the full sequence.
        summary: connector of PAL's summary tokens.
        projector: "per_layer", "shared" or "low_rank"; P_l of LAL.
        rank: of "low_rank".
        lal_layers: number of layers that audio enters by LAL, or that a Flamingo block stands before; None: all.
        ffn_factor: of Flamingo blocks.
        encoder: see `EncoderCost`.
        frozen_llm: the LLM takes no gradient of its own.
        checkpointing: layers are computed again in the backward pass.
        element_bytes: of weights and activations.
    """

    integration: str
    batch: int
    text_tokens: int
    audio_tokens: int
    logits: int
    connector: Mlp = field(default_factory=lambda: Mlp(1280))
    summary: Qformer | None = None
    projector: str = "per_layer"
    rank: int = 64
    lal_layers: int | None = None
    ffn_factor: int = 4
    encoder: EncoderCost = field(default_factory=EncoderCost)
    frozen_llm: bool = False
    checkpointing: bool = False
    element_bytes: int = 2

    @property
    def slots(self) -> int:
        """Audio tokens of a row that stand in the LLM's input."""
        if self.integration == "plits":
            return self.audio_tokens
        return self.summary.queries if self.integration == "pal" and self.summary else 0

    @property
    def row_tokens(self) -> int:
        """Tokens of a row that pass the LLM's layers."""
        return self.text_tokens + self.slots

    @property
    def keys(self) -> int:
        """Audio tokens of a row that LAL layers read as keys and values."""
        return self.audio_tokens if self.integration in ("lal", "pal") else 0

    def layers_with_keys(self, llm: LlmShape) -> int:
        if not self.keys:
            return 0
        return llm.num_layers if self.lal_layers is None else self.lal_layers

    def blocks(self, llm: LlmShape) -> int:
        """Flamingo blocks."""
        if self.integration != "flamingo":
            return 0
        return llm.num_layers if self.lal_layers is None else self.lal_layers


def forward_flops(llm: LlmShape, work: Work, num_queries: int | None = None, num_cached: int = 0) -> dict[str, int]:
    """Operations of one forward over a batch, by part.

    Args:
        llm: its sizes.
        work: the batch.
        num_queries: tokens of a row that pass the layers; None: all of them.
        num_cached: tokens of a row whose keys and values are there already.
    """
    width, batch, tokens = llm.hidden_size, work.batch, work.row_tokens if num_queries is None else num_queries
    lal, blocks = work.layers_with_keys(llm), work.blocks(llm)
    block_pairs = blocks * tokens * work.audio_tokens
    text_pairs = llm.num_layers * tokens * (tokens + num_cached)
    audio_rows = batch * work.keys
    return {
        "layers": 2 * batch * tokens * llm.num_layers * llm.layer_products,
        "attention": 4 * batch * (llm.query_size * (text_pairs + lal * tokens * work.keys) + width * block_pairs),
        "logits": 2 * batch * work.logits * width * llm.vocab_size,
        "projectors": audio_rows * _own_projector_flops(lal, width, work),
        "shared projector": audio_rows * (2 * width * width if work.projector != "per_layer" and lal else 0),
        "audio keys and values": lal * audio_rows * 4 * width * llm.kv_size,
        "blocks": 4 * batch * tokens * blocks * width * width * (1 + work.ffn_factor),
        "block keys and values": 4 * batch * work.audio_tokens * blocks * width * width,
        "connectors": 0 if work.integration == "text" else batch * _connector_flops(width, work),
        "encoder": 0 if work.integration == "text" else batch * work.encoder.flops_per_clip,
    }


def backward_flops(llm: LlmShape, work: Work) -> dict[str, int]:
    """Operations of the backward pass, by part: twice the forward's where weights learn, once where gradients only pass.

    Gradients reach every token of a row: the marker's vector learns, also with a frozen LLM. The encoder is frozen. A fused
    attention kernel computes its scores once more, which is not counted: it is not work that the model asks for.
    """
    forward = forward_flops(llm, work)
    llm_factor = 1 if work.frozen_llm else 2
    factors = {"layers": llm_factor, "logits": llm_factor, "audio keys and values": llm_factor, "encoder": 0}
    parts = {name: factors.get(name, 2) * flops for name, flops in forward.items()}
    if work.checkpointing:
        # The recomputation of a layer stops where nothing more is asked for, before its last map.
        last = 2 * work.batch * work.row_tokens * llm.num_layers * llm.ffn_size * llm.hidden_size
        again = ("layers", "attention", "projectors", "audio keys and values", "blocks", "block keys and values")
        parts["recomputed"] = sum(forward[name] for name in again) - last
    return parts


def step_flops(llm: LlmShape, work: Work) -> int:
    """Operations of one training step without the optimizer's."""
    return sum(forward_flops(llm, work).values()) + sum(backward_flops(llm, work).values())


def _own_projector_flops(num_layers: int, width: int, work: Work) -> int:
    """Of one audio token in the maps that layers have for themselves; what they share is computed once, before the layers."""
    own = {"per_layer": 2 * width * width, "shared": 0, "low_rank": 4 * width * work.rank}
    return num_layers * own[work.projector]


def _connector_flops(width: int, work: Work) -> int:
    full = work.connector.flops(width, work.audio_tokens)
    if work.integration != "pal" or work.summary is None:
        return full
    return full + work.summary.flops(width, work.audio_tokens * work.connector.stride)


def audio_parameters(llm: LlmShape, work: Work) -> int:
    """Trained parameters beside the LLM's: marker, connectors, projectors, Flamingo blocks."""
    width, lal = llm.hidden_size, work.layers_with_keys(llm)
    total = width
    if work.integration == "text":
        return total
    total += work.connector.num_parameters(width)
    if work.integration == "pal" and work.summary is not None:
        total += work.summary.num_parameters(width)
    full = width * width + width
    if lal:
        total += lal * full if work.projector == "per_layer" else full
        total += lal * 2 * width * work.rank if work.projector == "low_rank" else 0
    block = (4 + 2 * work.ffn_factor) * width * width + 4 * width + 2  # maps, two norms, two gates
    return total + work.blocks(llm) * block


def num_parameters(llm: LlmShape, work: Work) -> int:
    """All parameters: LLM, encoder and those of `audio_parameters`."""
    encoder = 0 if work.integration == "text" else work.encoder.num_parameters
    return llm.num_parameters + encoder + audio_parameters(llm, work)


def trained_parameters(llm: LlmShape, work: Work) -> int:
    """Parameters that take gradients."""
    return audio_parameters(llm, work) + (0 if work.frozen_llm else llm.num_parameters)


def kv_bytes(llm: LlmShape, work: Work, num_tokens: int | None = None) -> int:
    """Bytes of the text cache of a batch (PLITS slots stand in it) over `num_tokens` tokens a row; None: the row's own."""
    tokens = work.row_tokens if num_tokens is None else num_tokens
    return 2 * llm.num_layers * llm.kv_size * tokens * work.batch * work.element_bytes


def memory_bytes(llm: LlmShape, work: Work, num_clips: int | None = None) -> int:
    """Bytes of the audio memory of `num_clips` clips (None: one a row): keys and values of layers and blocks, PLITS tokens."""
    clips = work.batch if num_clips is None else num_clips
    keys = 2 * work.layers_with_keys(llm) * llm.kv_size * work.keys
    keys += 2 * work.blocks(llm) * llm.hidden_size * work.audio_tokens
    return clips * (keys + work.slots * llm.hidden_size) * work.element_bytes


def expanded_bytes(llm: LlmShape, work: Work) -> int:
    """Bytes that one layer's keys and values of [audio; text] take when they are repeated for every query head."""
    return 2 * llm.query_size * (work.row_tokens + work.keys) * work.batch * work.element_bytes
