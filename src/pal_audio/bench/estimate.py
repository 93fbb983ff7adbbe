"""Peak memory and time of a step, predicted: exact counts of `integration.cost` times a few constants.

Kept for the backward pass (bytes; e of an activation's element, letters as in `cost`), eager:

    a token in a layer        2 norms of (4 + 2e) D, feed-forward 4e F, queries and output 2e Hd, keys and values 2e Kd
    in a LAL layer instead    keys and values repeated for every head, 2e Hd, of text and audio; a mask of e a pair
    an audio token's key      e D of its projector's output; its norm is in the product (`integration.normed_projection`)
    an audio token            connector: (2 s frame_size + 6 D) e
    a frame, in PAL           summary: (5 + 2 of each of its layers) e frame_size
    a logit                   `logit_bytes`, at the end of the forward pass

    peak = weights + optimizer + max(kept + head's gradient, gradients + one layer's kept)
    device = linear_cost * F_linear / R + attention_cost * F_attention / R + traffic * bytes / W
    host   = step_launch_s + launch_s * layers + audio_launch_s * layers that hear + summary_launch_s * summary's layers
    time   = max(device, host)

R and W are the device's measured matrix rate and copy bandwidth. With every factor 1 and no launches that is the floor. Host and
device work at the same time: small steps wait for the one, large ones for the other.
"""

from dataclasses import dataclass, replace

from pal_audio.integration import cost
from pal_audio.integration.cost import LlmShape, Work


@dataclass(frozen=True)
class Constants:
    """What is fitted, for one way to compute.

    Attributes:
        text_kept, audio_kept: factors on the bytes that tokens of a row, and audio beside it, keep.
        logit_bytes: of one logit.
        linear_cost, attention_cost: time over that at the full matrix rate.
        traffic: times that the kept bytes move, and factor on the optimizer's.
        step_launch_s: of the host in a step, whatever its layers.
        launch_s, audio_launch_s, summary_launch_s: of a layer, of one that hears besides, of one of PAL's summary.
        fitted_on: LLM shapes whose rows were used; empty: not fitted.
        provenance: where the numbers are from.
    """

    text_kept: float = 1.0
    audio_kept: float = 1.0
    logit_bytes: float = 12.0
    linear_cost: float = 1.25
    attention_cost: float = 2.5
    traffic: float = 3.0
    step_launch_s: float = 0.0
    launch_s: float = 0.0
    audio_launch_s: float = 0.0
    summary_launch_s: float = 0.0
    fitted_on: tuple[str, ...] = ()
    provenance: str = "not fitted: counts of an eager forward pass, times by rule of thumb"


CONSTANTS: dict[str, Constants] = {
    "eager bf16": Constants(
        text_kept=1.0, audio_kept=0.67, logit_bytes=14.0, linear_cost=1.28, attention_cost=7.56, traffic=3.08,
        step_launch_s=0.0, launch_s=0.0031, audio_launch_s=0.0025, summary_launch_s=0.0081,
        fitted_on=("llama-3.2-1b", "qwen2.5-0.5b"), provenance="NVIDIA H200: 28 rows of llama-3.2-1b, qwen2.5-0.5b",
    ),
}  # fmt: skip
"""By way to compute ("eager bf16", "compiled bf16", ...), as `pal bench plan --fit` prints them; others are not fitted."""

FLOOR = Constants(linear_cost=1.0, attention_cost=1.0, traffic=1.0, provenance="floor")


@dataclass(frozen=True)
class Card:
    """A device: matrix rate in bf16, bytes a second, and memory that a process may fill.

    Rates of cards that we did not measure are the published dense ones times 0.78, what the H200 reached of its own.
    """

    flops: float
    bandwidth_bytes: float
    memory_bytes: float


GIB = 2**30
FOUR_BIT_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # of a weight: itself, its block's scale, the scale of 256 scales
CARDS = {
    "h200": Card(777e12, 4.3e12, 139 * GIB),
    "h100": Card(0.78 * 989e12, 0.9 * 3.35e12, 79 * GIB),
    "a100-80": Card(0.78 * 312e12, 0.9 * 2.04e12, 79 * GIB),
    "a100-40": Card(0.78 * 312e12, 0.9 * 1.56e12, 39 * GIB),
    "24gb": Card(0.78 * 165e12, 0.9 * 1.01e12, 23.5 * GIB),
}


@dataclass(frozen=True)
class Way:
    """How a step is computed.

    Attributes:
        precision: "bf16", "autocast" or "float32".
        compiled: by `torch.compile`.
        four_bit: the linear maps of the LLM's layers are kept as `model.four_bit` does; computing them again is not counted.
    """

    precision: str = "bf16"
    compiled: bool = False
    four_bit: bool = False

    @property
    def name(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'} {self.precision}"

    @property
    def constants(self) -> Constants:
        return CONSTANTS.get(self.name, Constants())

    @property
    def element_bytes(self) -> int:
        """Of an activation."""
        return 4 if self.precision == "float32" else 2

    @property
    def norm_bytes(self) -> int:
        """That one norm keeps of a channel: its input in float32, the normed, the output; under autocast that cast, too."""
        return 14 if self.precision == "autocast" else 4 + 2 * self.element_bytes


def layer_bytes(llm: LlmShape, work: Work, way: Way, with_keys: bool) -> tuple[float, float]:
    """Bytes that one layer keeps of a batch: of the rows' tokens, and of audio beside them."""
    element, tokens, keys = way.element_bytes, work.batch * work.row_tokens, work.batch * work.keys
    token = 2 * way.norm_bytes * llm.hidden_size + 4 * element * llm.ffn_size + 2 * element * llm.query_size
    if not with_keys:
        return tokens * (token + 2 * element * llm.kv_size), 0.0
    pairs = work.batch * work.row_tokens * (work.row_tokens + work.keys)
    expanded = 2 * element * llm.query_size
    return tokens * (token + expanded), keys * (element * llm.hidden_size + expanded) + element * pairs


def kept_bytes(llm: LlmShape, work: Work, way: Way, constants: Constants | None = None) -> tuple[float, float, float]:
    """Bytes that a whole forward pass keeps, by what they grow with: rows' tokens, audio beside them, logits."""
    constants = constants or way.constants
    lal, element = work.layers_with_keys(llm), way.element_bytes
    plain, masked = layer_bytes(llm, work, way, False), layer_bytes(llm, work, way, True)
    text = (llm.num_layers - lal) * plain[0] + lal * masked[0]
    audio = lal * masked[1]
    if work.checkpointing:  # a layer's input, and one layer while it is computed again
        one = masked if lal else plain
        text = llm.num_layers * work.batch * work.row_tokens * llm.hidden_size * element + one[0]
        audio = one[1]
    if work.integration != "text":
        frames = work.connector.stride * work.connector.frame_size
        audio += work.batch * work.audio_tokens * element * (2 * frames + 6 * llm.hidden_size)
    if work.integration == "pal" and work.summary is not None:
        frames = work.batch * work.audio_tokens * work.connector.stride
        audio += frames * element * (5 + 2 * work.summary.num_layers) * work.summary.frame_size
    logits = work.batch * work.logits * llm.vocab_size * constants.logit_bytes
    return constants.text_kept * text, constants.audio_kept * audio, logits


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step; `backward_end` is what stands above weights and optimizer when the last layer gets gradients."""

    weights: float
    gradients: float
    optimizer: float
    peak: float
    backward_end: float

    @property
    def rest(self) -> float:
        return self.peak - self.weights - self.gradients - self.optimizer


def weight_bytes(llm: LlmShape, work: Work, way: Way) -> float:
    """Bytes of all weights."""
    size = 2 if way.precision == "bf16" else 4
    spared = llm.num_layers * llm.layer_products * (size - FOUR_BIT_BYTES) if way.four_bit else 0
    return size * cost.num_parameters(llm, work) - spared


def training_memory(llm: LlmShape, work: Work, way: Way, constants: Constants | None = None) -> TrainingMemory:
    """Peak of a training step with AdamW, and its parts."""
    size = 2 if way.precision == "bf16" else 4
    trained = cost.trained_parameters(llm, work)
    weights, gradients, optimizer = weight_bytes(llm, work, way), size * trained, 2 * size * trained
    kept = sum(kept_bytes(llm, work, way, constants)) + beside_kept_bytes(llm, work, way)
    layer = sum(layer_bytes(llm, work, way, bool(work.layers_with_keys(llm))))
    return TrainingMemory(weights, gradients, optimizer, weights + optimizer + max(kept, gradients + layer), gradients + layer)


def beside_kept_bytes(llm: LlmShape, work: Work, way: Way) -> float:
    """Bytes at the end of the forward pass beside what is kept: the head's gradient, and under autocast the weights' copies."""
    size = 2 if way.precision == "bf16" else 4
    in_four_bit = llm.num_layers * llm.layer_products if way.four_bit else 0
    copies = 2 * (cost.num_parameters(llm, work) - in_four_bit) if way.precision == "autocast" else 0
    return copies + (0 if work.frozen_llm else size * llm.hidden_size * llm.vocab_size)


def inference_memory(llm: LlmShape, work: Work, way: Way, new_tokens: int = 256) -> float:
    """Peak of a decoding batch: weights, text cache, audio memory, and one layer of the prefill at work."""
    size = 2 if way.precision == "bf16" else 4
    work = replace(work, logits=1, element_bytes=size)
    cache = cost.kv_bytes(llm, work, work.row_tokens + new_tokens)
    width = max(llm.ffn_size * 3, 4 * llm.hidden_size)
    working = work.batch * work.row_tokens * width * size + cost.expanded_bytes(llm, work)
    return weight_bytes(llm, work, way) + cache + cost.memory_bytes(llm, work) + working


def time_features(llm: LlmShape, work: Work, way: Way) -> tuple[float, float, float]:
    """What the device's time is made of: linear and attention operations of a step, bytes that must move."""
    forward, backward = cost.forward_flops(llm, work), cost.backward_flops(llm, work)
    attention = forward["attention"] + backward["attention"]
    linear = sum(forward.values()) + sum(backward.values()) - attention
    memory = training_memory(llm, work, way, Constants())
    # Weights are read twice and written, gradients written and read, the optimizer's state read and written.
    state = 3 * memory.weights + 2 * memory.gradients + 2 * memory.optimizer
    return linear, attention, sum(kept_bytes(llm, work, way, Constants())) + state


def launch_features(llm: LlmShape, work: Work) -> tuple[int, int, int, int]:
    """What the host's time is made of: the step, layers, layers that hear (LAL's and blocks), layers of PAL's summary."""
    summary = work.summary.num_layers if work.integration == "pal" and work.summary is not None else 0
    return 1, llm.num_layers, work.layers_with_keys(llm) + work.blocks(llm), summary


def step_seconds(llm: LlmShape, work: Work, way: Way, card: Card, constants: Constants | None = None) -> float:
    """Predicted time of a training step; with `FLOOR`, what no implementation of these operations goes below."""
    constants = constants or way.constants
    linear, attention, moved = time_features(llm, work, way)
    step, layers, hearing, summary = launch_features(llm, work)
    device_s = (
        constants.linear_cost * linear / card.flops
        + constants.attention_cost * attention / card.flops
        + constants.traffic * moved / card.bandwidth_bytes
    )
    host_s = (
        constants.step_launch_s * step
        + constants.launch_s * layers
        + constants.audio_launch_s * hearing
        + constants.summary_launch_s * summary
    )
    return max(device_s, host_s)


def largest_batch(llm: LlmShape, work: Work, way: Way, card: Card) -> int:
    """Rows whose training step fits the card; 0 where not one does."""

    def fits(batch: int) -> bool:
        return training_memory(llm, replace(work, batch=batch), way).peak <= card.memory_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
