"""A prompt as one function of tensors that lie still: from token ids and a ready memory to the first token, in few launches.

    ids, mask, places of clips ──1 copy──► Inputs ──► open: embeddings, masks, tables ──► through: LLM, argmax ──► first token
                                                      └──────────────── one CUDA graph ───────────────┘

Keys and values of a memory are read where they lie. A memory that lies elsewhere is read by the same code, not captured; the
second question about it captures, further ones replay. Source: our choice.

Shapes: B rows, L tokens of the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache

from pal_audio.integration.attached import AttachedAudio
from pal_audio.integration.attention import check_consumed
from pal_audio.integration.flamingo import check_entered
from pal_audio.integration.memory import AudioMemory
from pal_audio.integration.packing import text_windows
from pal_audio.integration.prompt_attention import Kernel, PromptStep
from pal_audio.model.graphs import captured, place_of
from pal_audio.model.placing import is_audio

if TYPE_CHECKING:
    from pal_audio.model.modeling import PalForConditionalGeneration

WAYS = ("plain", "captured", "compiled")
MAX_SHAPES = 64  # compiled prompts that a process keeps; what is of a further shape runs uncompiled
ALIGNED = 16  # bytes: what compiled kernels expect of an address


class Inputs:
    """Small tensors of fixed shapes and addresses, filled from the CPU by one copy.

    Args:
        like: tensors of the shapes and dtypes.
        device: where they shall lie.
    """

    def __init__(self, like: Sequence[Tensor], device: torch.device) -> None:
        self._kinds = [(tensor.shape, tensor.dtype, -(-tensor.nbytes // ALIGNED) * ALIGNED) for tensor in like]
        self._buffer = torch.zeros(sum(size for *_, size in self._kinds), dtype=torch.uint8, device=device)
        self.tensors = self._views(self._buffer)

    def _views(self, buffer: Tensor) -> list[Tensor]:
        parts = buffer.split([size for *_, size in self._kinds])
        sizes = [shape.numel() * dtype.itemsize for shape, dtype, _ in self._kinds]
        return [
            part[:size].view(dtype).view(shape)
            for part, size, (shape, dtype, _) in zip(parts, sizes, self._kinds, strict=True)
        ]  # fmt: skip

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Take the values of tensors on the CPU."""
        sent = torch.empty(len(self._buffer), dtype=torch.uint8, pin_memory=self._buffer.is_cuda)
        for view, tensor in zip(self._views(sent), tensors, strict=True):
            view.copy_(tensor)
        self._buffer.copy_(sent, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Placed:
    """Clips in a prompt, and what they were placed by.

    Attributes:
        audio: on the CPU; None for text alone.
        is_full: the rows have no padding.
        small: tensors of the prompt, on the CPU, that a captured call reads beside token ids.
        shape: what code is compiled for.
        bound: what a graph is captured for.
        decides: tensors that the places follow from.
        held, addresses: tensors of the memory, and where they lay.
    """

    audio: AttachedAudio | None
    is_full: bool
    small: list[Tensor]
    shape: tuple[Any, ...]
    bound: tuple[Any, ...]
    decides: list[Tensor]
    held: list[Tensor]
    addresses: list[int]

    def stands(self, decides: list[Tensor], held: list[Tensor]) -> bool:
        """Whether another prompt's clips stand where these do, and lie where they lay."""
        return (
            len(held) == len(self.held)
            and all(one is other for one, other in zip(held, self.held, strict=True))
            and [tensor.data_ptr() for tensor in held] == self.addresses
            and len(decides) == len(self.decides)
            and all(map(torch.equal, decides, self.decides))
        )


class Prefill:
    """Prompts of a decoder, as one function.

    Args:
        model: of the decoder.
        cache: static, of the prompt's rows.
        choose: from logits (B, V) to tokens (B, 1).
        way: "captured": in a CUDA graph, as it is; "compiled": by torch.compile too.
        rows: of a prompt.
        kernel: attention of layers with audio; see `PromptStep`.

    Attributes:
        first_B1, position_B1: the first token and its position, of the last prompt.
        why_plain: what keeps the last prompt's shape from being compiled; None: nothing.
    """

    def __init__(
        self, model: "PalForConditionalGeneration", cache: Cache, choose: Callable[[Tensor], Tensor], way: str, rows: int,
        kernel: Kernel | None = None,
    ) -> None:  # fmt: skip
        self.model, self.cache, self.choose, self.kernel = model, cache, choose, kernel
        device = model.marker.device
        self.first_B1, self.position_B1 = (torch.zeros(rows, 1, dtype=torch.int64, device=device) for _ in range(2))
        self.why_plain: str | None = None
        self._windows = text_windows(model.language_model.config.get_text_config(), "decoding")
        self._compiled: tuple[Callable[[], None], ...] | None = None
        if way == "compiled":
            self._compiled = tuple(torch.compile(part, fullgraph=True, dynamic=False) for part in (self.open, self.through))
        self._bound: tuple[Any, ...] | None = None
        self._replay: Callable[[], None] | None = None
        self._inputs: Inputs
        self._placed: Placed | None = None
        self.plan: PromptStep
        self._refused: set[Any] = set()  # shapes that torch.compile would not take any more
        self._approved = ""
        self._aside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, ids_BL: Tensor, mask_BL: Tensor, memory: AudioMemory | None, is_new: bool) -> AttachedAudio | None:
        """Run a prompt; its audio as the step is to read it.

        Args:
            ids_BL, mask_BL: on the CPU.
            memory: of its clips.
            is_new: the memory was made by the model just now and needs no check.

        Raises:
            PalError: what `model.attach` raises.
            RuntimeError: text or audio did not pass through PAL.
        """
        checked_later = False
        if memory is not None and not is_new:
            checked_later = memory.fingerprint == self._approved
            if checked_later:
                self.model.check_whole(memory)
            else:
                self.model.check_fingerprint(memory)
        started = torch.cuda.current_stream(self._aside.device).record_event() if checked_later and self._aside else None
        if memory is not None:
            self._approved = memory.fingerprint
        self._run(ids_BL, mask_BL, memory)
        if checked_later:  # while the device is busy with the prompt
            assert memory is not None
            with torch.cuda.stream(self._aside):
                if started is not None:
                    started.wait()
                self.model.check_fingerprint(memory)
        return self.plan.audio

    def _run(self, ids_BL: Tensor, mask_BL: Tensor, memory: AudioMemory | None) -> None:
        self._placed = placed = self._place(ids_BL, mask_BL, memory)
        small = [ids_BL, *placed.small]
        device = self.model.marker.device
        if placed.bound == self._bound:
            self._inputs.fill(small)
            if self._replay is None:
                self._replay = captured(lambda: self._once(placed.shape), device)
            self._replay()
            return
        self._bound = self._replay = None
        self._inputs = Inputs(small, device)
        self.ids_BL, seen_BL, *rest = self._inputs.tensors
        audio = None if placed.audio is None else placed.audio.with_prompt_tensors(self.ids_BL, rest)
        self.plan = PromptStep(self._windows, seen_BL, placed.is_full, audio, self.kernel)
        self._inputs.fill(small)
        self.model.hook_attention()
        self._once(placed.shape)
        self._check()
        self._bound = placed.bound

    def _place(self, ids_BL: Tensor, mask_BL: Tensor, memory: AudioMemory | None) -> "Placed":
        """Clips in a prompt; where nothing stands elsewhere than in the last one, that is how it was."""
        decides, held = [mask_BL], []
        if memory is not None:
            marker_id, slot_id = self.model.config.audio_ids
            clips = memory.clips
            decides += [ids_BL == marker_id, ids_BL == slot_id, clips.num_slots_C, clips.num_keys_SC, clips.spans_C]
            decides += [] if memory.order is None else [memory.order]
            held = memory.tensors()
        last = self._placed
        if last is not None and last.stands(decides, held):
            return last
        audio, kinds = None, None
        small = [mask_BL.bool()]
        if memory is not None:
            audio = self.model.place(memory, ids_BL, mask_BL, torch.device("cpu"), remember=False)
            kinds = audio.kinds()
            small += audio.prompt_tensors()
        is_full = bool(small[0].all())
        shape = is_full, kinds, *((tensor.shape, tensor.dtype) for tensor in (ids_BL, *small))
        bound = shape, *map(place_of, held)
        kept = [tensor.clone() for tensor in decides]
        return Placed(audio, is_full, small, shape, bound, kept, held, [tensor.data_ptr() for tensor in held])

    def _once(self, shape: Any) -> None:
        """Open and go through, compiled where that is wanted and possible."""
        layers: Any = self.cache.layers
        for layer in layers:
            layer.prefilling = True
        compiled, self.why_plain = self._compiled, None
        if shape in self._refused:
            compiled, self.why_plain = None, f"more than {MAX_SHAPES} shapes of prompts were compiled"
        if compiled is None or not layers[0].is_initialized:
            self.open()
            self.through()
        else:
            try:
                with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
                    for part in compiled:
                        part()
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                self._refused.add(shape)
                self._once(shape)
        for layer in layers:
            layer.prefilling = False

    def open(self) -> None:
        """What all layers read: embeddings, positions, masks and rotary tables."""
        model, plan, ids_BL = self.model, self.plan, self.ids_BL
        embeddings = model.get_input_embeddings()(ids_BL.masked_fill(is_audio(model.config, ids_BL), 0))
        if plan.audio is None:
            self.positions_BL = (plan.seen_BL.cumsum(1) - 1).clamp(min=0)
        else:
            self.positions_BL = plan.audio.placement.position_ids_BL
            embeddings = plan.audio.embed(ids_BL, self.positions_BL, embeddings, model.marker)
            plan.audio.begin_anew(self.positions_BL)
        plan.begin()
        self.embeddings_BLD = embeddings

    def through(self) -> None:
        """The LLM, the first token and its position; keys and values go to the static cache."""
        model, plan = self.model, self.plan
        heard = plan.audio is not None and len(plan.audio.blocks) > 0
        # A 4D mask goes through transformers as it is; our attention has its own.
        outputs = model.language_model(
            inputs_embeds=self.embeddings_BLD, attention_mask=plan.seen_BL[:, None, None], position_ids=self.positions_BL,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1, pal_decoding=plan,
            **({"pal_audio": plan.audio} if heard else {}),
        )  # fmt: skip
        first_B1 = self.choose(outputs.logits[:, -1])
        position_B1 = plan.seen_BL.sum(1, keepdim=True)
        if plan.audio is not None:
            position_B1 = position_B1 + plan.audio.placement.shifts_BR.sum(1, keepdim=True)
        self.first_B1.copy_(first_B1)
        self.position_B1.copy_(position_B1)

    def _check(self) -> None:
        """The guards of the plain path; a replay repeats what was checked."""
        num_layers = len(self.cache.layers)
        lost = num_layers - len(self.plan.called)
        if lost:
            raise RuntimeError(f"decoding: {lost} of {num_layers} layers did not attend through PAL; use generate")
        if self.plan.audio is not None:
            check_consumed(self.plan.audio)
            check_entered(self.plan.audio)
