"""What one row of a benchmark is about: its settings, its key, and the group that it is compared in.

Sweep (lists) ──► groups of Cases: one set of settings, every integration ──► rows
"""

import hashlib
import itertools
import json
from typing import Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from pal_audio.bench import shapes
from pal_audio.config import StrictConfig, parse_config
from pal_audio.errors import PalError
from pal_audio.integration import cost
from pal_audio.integration.config import LalConfig, parse_layers
from pal_audio.integration.recompute import RecomputeSetting
from pal_audio.integration.training_attention import DEFAULT_KERNEL, AudioKernel
from pal_audio.integration.unprojected import DEFAULT_PROJECTIONS, Projections

SYSTEM_TOKENS = 24
FEWEST_TOKENS = 4
COMPARED = ("text", "plits", "lal")
"""Every group has these, so that every row has its ratios."""

Precision = Literal["bf16", "autocast", "float32"]


class Setup(StrictConfig):
    """What all rows of a group have in common.

    Attributes:
        llm, encoder: names in `shapes`.
        precision: "bf16" (weights, gradients and optimizer too), "autocast" (float32 weights, bfloat16 products), "float32".
        compile: nothing, the model's parts as a training stage does it, or everything from inputs to loss.
        compile_mode: of `torch.compile`.
        optimizer: AdamW by torch's fused kernel, or by kernels that `torch.compile` makes of it.
        kernel: the inner attention kernel, as `set_attn_implementation` of the model takes it.
        checkpointing: layers are computed again in the backward pass.
        recompute_audio: the attention of LAL layers is, from audio tokens on: fully, or but for matrix products (`light`).
        audio_kernel: how LAL layers attend in training: "auto", "sdpa", or "triton" and nothing else.
        projections: of LAL layers in training: see `integration.unprojected`. Operations are counted as the model defines
            them, whichever it is.
        packed: the batch goes through the LLM as one row.
        logits: "supervised" asks the LLM for logits where something is supervised, the loss is computed here;
            "model" leaves both to the model's own forward. Packed batches always go the second way.
        frozen_llm: the LLM's weights do not learn.
        positions: "span" or "zero".
    """

    llm: str = "llama-3.2-1b"
    encoder: str = "frames"
    precision: Precision = "bf16"
    compile: Literal["none", "model", "step"] = "none"
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    optimizer: Literal["fused", "compiled"] = "fused"
    kernel: str = "sdpa"
    checkpointing: bool = False
    recompute_audio: RecomputeSetting = "none"
    audio_kernel: AudioKernel = DEFAULT_KERNEL
    projections: Projections = DEFAULT_PROJECTIONS
    packed: bool = True
    logits: Literal["supervised", "model"] = "supervised"
    frozen_llm: bool = False
    positions: Literal["span", "zero"] = "span"

    @model_validator(mode="after")
    def _canonical(self) -> "Setup":
        """`auto` composes only in steps whose parts are compiled and that keep what LAL layers compute."""
        keeps_less = self.checkpointing or self.recompute_audio != "none"
        if self.projections == "auto" and (self.compile != "model" or keeps_less):
            self.__dict__["projections"] = "apart"
        return self

    @property
    def replays_graphs(self) -> bool:
        """Whether steps replay CUDA graphs, whose memory torch's allocator does not count as allocated."""
        return self.compile != "none" and self.compile_mode in ("reduce-overhead", "max-autotune")

    @model_validator(mode="after")
    def _known(self) -> "Setup":
        shapes.find(self.llm, shapes.LLMS, "llm")
        shapes.find(self.encoder, shapes.ENCODERS, "encoder")
        return self


class Case(StrictConfig):
    """One row.

    Attributes:
        audio_tokens: of a clip; 25 a second.
        text_tokens: of a row: system prompt, marker, question and answer. Half of them are supervised.
        projector: "per_layer", "shared" or "low_rank:R" (LAL's P_l).
        layers: layers that audio enters by LAL, or that a Flamingo block stands before.
        summary: PAL's summary tokens.
        extra: settings of one verb alone.
    """

    setup: Setup
    integration: str
    batch: int = Field(16, ge=1)
    audio_tokens: int = Field(1024, ge=0)
    text_tokens: int = Field(64, ge=FEWEST_TOKENS)
    projector: str = "per_layer"
    layers: str = "all"
    summary: int = Field(16, ge=1)
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _canonical(self) -> "Case":
        """What an integration does not read takes one value, so that equal work has an equal key."""
        shapes.find(self.integration, dict.fromkeys(cost.COUNTED), "integration")
        if self.integration == "text":
            self.__dict__.update(audio_tokens=0, projector="per_layer", layers="all", summary=16)
        elif self.audio_tokens < 1:
            raise PalError("audio_tokens: a clip has at least one token")
        if self.integration == "plits":
            self.__dict__.update(projector="per_layer", layers="all")
        if self.integration == "flamingo":
            self.__dict__.update(projector="per_layer")
        if self.integration != "pal":
            self.__dict__.update(summary=16)
        split_projector(self.projector)
        parse_layers(self.layers, self.llm.num_layers)
        return self

    @property
    def key(self) -> str:
        """Of all settings, a younger one only where it is not its default; the hardware is added by the store."""
        said = self.model_dump()
        if self.setup.projections == "apart":
            del said["setup"]["projections"]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def llm(self) -> cost.LlmShape:
        return shapes.llm_shape(shapes.LLMS[self.setup.llm])

    @property
    def stride(self) -> int:
        return shapes.ENCODERS[self.setup.encoder].stride

    @property
    def supervised(self) -> int:
        """Tokens of a row that the loss is about: its last ones."""
        return self.text_tokens // 2

    @property
    def system(self) -> int:
        """Tokens before the marker."""
        return min(SYSTEM_TOKENS, self.text_tokens - self.supervised - 2)

    @property
    def lal_config(self) -> LalConfig:
        kind, rank = split_projector(self.projector)
        return LalConfig(layers=self.layers, projector=kind, rank=rank)  # type: ignore[arg-type]

    def work(self) -> cost.Work:
        """The same for the cost model."""
        encoder = shapes.ENCODERS[self.setup.encoder]
        frame_size = int(frame_width(encoder))
        kind, rank = split_projector(self.projector)
        everywhere = self.setup.logits == "model" and not self.setup.packed
        slots = {"plits": self.audio_tokens, "pal": self.summary}.get(self.integration, 0)
        return cost.Work(
            integration=self.integration,
            batch=self.batch,
            text_tokens=self.text_tokens,
            audio_tokens=self.audio_tokens,
            logits=self.text_tokens + slots if everywhere else self.supervised,
            connector=cost.Mlp(frame_size, encoder.stride),
            summary=qformer_cost(self.summary, frame_size) if self.integration == "pal" else None,
            projector=kind,
            rank=rank,
            lal_layers=len(parse_layers(self.layers, self.llm.num_layers)),
            encoder=shapes.encoder_cost(encoder, self.audio_tokens * encoder.stride),
            frozen_llm=self.setup.frozen_llm,
            checkpointing=self.setup.checkpointing,
            element_bytes=2 if self.setup.precision == "bf16" else 4,
        )

    @property
    def operations(self) -> int:
        """Of a forward pass; what tells a cheap case from a dear one."""
        return sum(cost.forward_flops(self.llm, self.work()).values())

    def title(self) -> str:
        """A few words for progress and tables."""
        sizes = f"{self.batch}x{self.audio_tokens}+{self.text_tokens}"
        own = {
            "lal": f" {self.projector}",
            "pal": f" {self.projector} k={self.summary}",
            "flamingo": f" {self.layers}",
        }
        return f"{self.integration}{own.get(self.integration, '')} {sizes}"


class Sweep(StrictConfig):
    """Lists of settings; every combination is a group. A YAML file has the same keys."""

    setup: Setup = Setup()
    integrations: list[str] = Field(list(cost.INTEGRATIONS), min_length=1)
    batch: list[int] = Field([16], min_length=1)
    audio_tokens: list[int] = Field([1024], min_length=1)
    text_tokens: list[int] = Field([64], min_length=1)
    projector: list[str] = Field(["per_layer"], min_length=1)
    layers: list[str] = Field(["all"], min_length=1)
    summary: list[int] = Field([16], min_length=1)

    def groups(self, extra: dict[str, Any] | None = None) -> list[list[Case]]:
        """Cases to be compared with each other; `COMPARED` are always among them."""
        for name in self.integrations:
            shapes.find(name, dict.fromkeys(cost.COUNTED), "integration")
        names = [name for name in cost.COUNTED if name in COMPARED or name in self.integrations]
        groups = []
        for batch, audio, text, projector, layers, summary in itertools.product(
            self.batch, self.audio_tokens, self.text_tokens, self.projector, self.layers, self.summary
        ):
            sizes = {"batch": batch, "audio_tokens": audio, "text_tokens": text, "projector": projector, "layers": layers}
            values = {"setup": self.setup, "summary": summary, "extra": extra or {}, **sizes}
            groups.append([parse_config(TypeAdapter(Case), {"integration": name, **values}, "bench") for name in names])
        return groups


def split_projector(text: str) -> tuple[str, int]:
    """Kind and rank of "per_layer", "shared" or "low_rank:R".

    Raises:
        PalError: it is none of them.
    """
    kind, colon, number = text.partition(":")
    if kind in ("per_layer", "shared") and not colon:
        return kind, 64
    if kind == "low_rank" and number.isdigit() and int(number) >= 1:
        return kind, int(number)
    raise PalError(f"projector {text!r} is unknown; write per_layer, shared or low_rank:R, for example low_rank:256")


def qformer_cost(queries: int, frame_size: int, num_heads: int | None = None, num_layers: int = 2) -> cost.Qformer:
    """The `qformer` connector as far as cost goes; `num_heads` as in its configuration."""
    from pal_audio.connectors.queries import find_num_heads

    return cost.Qformer(queries, frame_size, find_num_heads("qformer", frame_size, num_heads), num_layers)


def frame_width(encoder: shapes.Encoder) -> int:
    """Width of an encoder's frames."""
    from pal_audio import encoders

    return encoders.parse(encoder.config).frame_size
