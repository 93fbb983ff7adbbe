"""A decoding loop in tensors of fixed size, compiled and captured in a CUDA graph: the tokens of `generate`, without its cost.

    prompt ──► a forward into a static text cache ──► first token ──► step ──► step ──► ...
               (ordinary, or one graph: `prefill`)                    └ one graph: embed, LLM, argmax, end of text

A step reads nothing from the host: token, position, slot and which rows have ended are tensors that it updates itself. The
host looks every few steps whether all rows have ended, and never waits for the step just started.

Audio keys and values stay where `attach` put them; see `integration.decode_attention`. Source: our choice.

Shapes: B rows, L tokens of the prompt, T slots of text, A audio keys.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pal_audio.errors import PalError
from pal_audio.integration.attached import AttachedAudio
from pal_audio.integration.attention import check_consumed
from pal_audio.integration.decode_attention import DecodingStep, Keys, one_query_attention, text_cache
from pal_audio.integration.flamingo import check_entered
from pal_audio.integration.key_values import find_layers
from pal_audio.integration.memory import AudioMemory, LiveAudio
from pal_audio.integration.packing import text_windows
from pal_audio.integration.training_attention import HAS_TRITON, check_triton
from pal_audio.model.graphs import captured, place_of
from pal_audio.model.joined_weights import JoinedMaps, called_as_one, joinable, places
from pal_audio.model.placing import context_of, sound_of
from pal_audio.model.prefill import WAYS, Prefill
from pal_audio.model.sound import Features, Lengths

if TYPE_CHECKING:
    from pal_audio.model.modeling import PalForConditionalGeneration

CHECK_EVERY = 8  # steps between looks at whether all rows have ended
MAX_SHAPES = 64  # compiled steps that a process keeps; more are an error of torch
SLOTS_AT_ONCE = 64  # text slots are made in multiples: answers of nearby lengths share compiled code


def has_kernel(model: "PalForConditionalGeneration") -> bool:
    """Whether the attention kernels of a step and a prompt serve this model: on a GPU, heads of 32, 64, 128 or 256."""
    attention = getattr(find_layers(model.language_model)[0], "self_attn", None)
    return HAS_TRITON and model.marker.is_cuda and getattr(attention, "head_dim", None) in (32, 64, 128, 256)


class Decoder:
    """Keeps the compiled step, its tensors and its graph from one answer to the next of equal shapes.

    Args:
        model: in eval mode, of a kind that `decoding.why_plain` has nothing against. Its weights may change in place; where they
            are replaced (a merged adapter, another dtype or device) or an adapter is switched, make a new decoder.
        compile: see `decoding.greedy`.
        kernel: attend by `integration.decode_kernel` and, in a prompt of ours, by `integration.prompt_kernel`; else by matrix
            products and SDPA. None: on a GPU, for heads of their kind.
        prefill: how a prompt passes: "plain", the model's forward; "captured", one function that is a CUDA graph from the second
            question about a memory on; "compiled", by torch.compile too, for each number of rows and length of prompt and clips.
        join: make one product of the LLM's linear maps that read the same input, in a step: query, key and value, gate and up.
            The weights of these maps become views of joined ones, for good: names and values stay, nothing is held twice. CUDA
            graphs of others that were captured before read weights that are gone; decoders notice. None: where the step is
            compiled on a GPU. A sharded model's maps stay apart.

    Attributes:
        why_plain_prefill: what let the last prompt pass otherwise than `prefill` says; None: nothing.

    Raises:
        PalError: there is no such prefill, or kernels are asked for where there is no Triton or no GPU.
    """

    def __init__(
        self,
        model: "PalForConditionalGeneration",
        compile: bool | None = None,
        kernel: bool | None = None,
        prefill: str = "plain",
        join: bool | None = None,
    ) -> None:
        if prefill not in WAYS:
            raise PalError(f"prefill: {prefill!r} is not one of {', '.join(WAYS)}")
        self.model = model
        self.prefill = prefill
        self.why_plain_prefill: str | None = None
        wanted = model.marker.is_cuda and model.language_model._can_compile_fullgraph
        self.compile = wanted if compile is None else compile
        self.kernel = has_kernel(model) if kernel is None else kernel
        self.attention: Any = one_query_attention
        self.prompt_attention: Any = None
        if self.kernel:
            check_triton("Decoder(kernel=True) (kernel=False decodes without)", model.marker.device)
            from pal_audio.integration import decode_kernel, prompt_kernel  # Triton comes with torch's CUDA builds alone

            self.attention, self.prompt_attention = decode_kernel.one_query_attention, prompt_kernel.prompt_attention
        self.join = self.compile and model.marker.is_cuda if join is None else join
        self._joinable: list[tuple[nn.Linear, ...]] = []
        self._joined: list[JoinedMaps] = []
        self._places: tuple[int, ...] | None = None
        self._shape: tuple[Any, ...] | None = None
        self._bound: tuple[Any, ...] | None = None
        self._small: list[Tensor] = []
        self.run: Callable[[], None] = self.step  # a step, as compiled and captured
        self._compiled: Callable[[], None] | None = None
        self._prompts: Prefill | None = None

    @torch.no_grad()
    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, ends: list[int], pad: int, **audio: Any
    ) -> Tensor:
        """See `decoding.greedy`."""
        self.start(input_ids, attention_mask, max_new_tokens, ends, pad, **audio)
        self.run_until_end(max_new_tokens - 1, bool(ends))
        return self.answer(input_ids, max_new_tokens, ends)

    @torch.no_grad()
    def start(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        ends: list[int],
        pad: int,
        input_features: Features | None = None,
        audio_num_samples: Lengths | None = None,
        audio_memory: AudioMemory | AttachedAudio | None = None,
    ) -> None:
        """Prefill, the first token, and a step that is ready to run."""
        self.allocate(len(input_ids), input_ids.shape[1] + max_new_tokens, ends, pad)
        sound = input_features, audio_num_samples, audio_memory
        first, positions, attached = self.first_token(input_ids, attention_mask, *sound)
        ids, mask = (tensor.to(self.model.marker.device) for tensor in (input_ids, attention_mask))
        if max_new_tokens > 1:
            self._bind(attached, positions)
        self.ids_BT.fill_(pad)
        self.ids_BT[:, : ids.shape[1]] = ids
        self.ids_BT[:, ids.shape[1] : ids.shape[1] + 1] = first
        self.token_B1.copy_(first)
        self.position_B1.copy_(positions)
        self.column_1.fill_(ids.shape[1])
        self.ended_B.copy_((first == self.ends_E).any(1))
        self.plan.seen_BT.zero_()
        self.plan.seen_BT[:, : ids.shape[1]] = mask.bool()

    @torch.no_grad()
    def first_token(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        input_features: Features | None = None,
        audio_num_samples: Lengths | None = None,
        audio_memory: AudioMemory | AttachedAudio | None = None,
    ) -> tuple[Tensor, Tensor, AttachedAudio | None]:
        """The first token (B, 1), its position (B, 1) and the prompt's audio; `allocate` comes before."""
        self.why_plain_prefill = self._why_plain_prefill(audio_memory)
        if self.prefill == "plain" or self.why_plain_prefill is not None:
            sound = input_features, audio_num_samples, audio_memory
            attached = context_of(self.model, input_ids, attention_mask, *sound, remember=not self.kernel)
            return self._plain_prefill(input_ids, attention_mask, attached)
        assert not isinstance(audio_memory, AttachedAudio)
        if self._prompts is None:
            rows, kernel = len(input_ids), self.prompt_attention
            self._prompts = Prefill(self.model, self.cache, self.choose, self.prefill, rows, kernel)
        ids, mask = input_ids.cpu(), attention_mask.cpu()
        memory = sound_of(self.model, ids, input_features, audio_num_samples, audio_memory)
        assert not isinstance(memory, LiveAudio)
        attached = self._prompts(ids, mask, memory, is_new=input_features is not None)
        self.why_plain_prefill = self._prompts.why_plain
        if attached is not None:  # a step's own: what the prompt's function reads stays as it is
            attached = replace(attached, remembered={}, block_memory={}, _rotary={})
            if not self.kernel:
                attached.remember_all()
        return self._prompts.first_B1, self._prompts.position_B1, attached

    def _why_plain_prefill(self, audio: AudioMemory | AttachedAudio | None) -> str | None:
        if self.prefill == "plain":
            return None
        if isinstance(audio, AttachedAudio):
            return "audio was attached before"
        if isinstance(self.model, FSDPModule):
            return "the model is sharded"
        if torch.is_autocast_enabled(self.model.marker.device.type):
            return "autocast"
        if self.model.marker.is_cuda and not self.model.language_model._can_compile_fullgraph:
            return f"{self.model.language_model.config.model_type} waits for the device"
        return None

    def allocate(self, rows: int, length: int, ends: list[int], pad: int) -> None:
        """Tensors of a size, kept while the size stays.

        Args:
            rows: B.
            length: of prompt and answer; rounded up.
            ends, pad: see `decoding.greedy`.
        """
        device = self.model.marker.device
        length = -(-length // SLOTS_AT_ONCE) * SLOTS_AT_ONCE
        shape = rows, length, tuple(ends), pad, device, self._weight_places()
        if shape == self._shape:
            return
        config = self.model.language_model.config.get_text_config()
        self.column_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.token_B1, self.position_B1 = (torch.zeros(rows, 1, dtype=torch.int64, device=device) for _ in range(2))
        self.ids_BT = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self.ended_B = torch.zeros(rows, dtype=torch.bool, device=device)
        self.ends_E = torch.tensor(ends, dtype=torch.int64, device=device)
        audio_ids = () if self.model.config.audio_token_id is None else self.model.config.audio_ids
        inside = [token for token in audio_ids if token < config.vocab_size]
        self.never_N = torch.tensor(inside, dtype=torch.int64, device=device)
        self.pad = pad
        self.cache = text_cache(config.num_hidden_layers, length, self.column_1)
        self.plan = DecodingStep(
            text_windows(config, "decoding"),
            self.column_1,
            torch.zeros(rows, length, dtype=torch.bool, device=device),
            self.attention,
        )
        self._shape, self._bound, self._compiled, self._prompts = shape, None, None, None

    def _weight_places(self) -> tuple[int, ...]:
        """Where weights and biases of joinable maps lie; at first, and where one was moved, maps are looked for and joined."""
        model = self.model
        if places(self._joinable) != self._places:
            self._joinable = [] if isinstance(model, FSDPModule) else joinable(model.language_model, model)
            if self.join:
                model._fingerprint.forget()  # its views would keep what is left behind
                self._joined = [JoinedMaps(maps) for maps in self._joinable]
            self._places = places(self._joinable)
        return self._places

    def _plain_prefill(
        self, input_ids: Tensor, attention_mask: Tensor, attached: AttachedAudio | None
    ) -> tuple[Tensor, Tensor, AttachedAudio | None]:
        """See `first_token`; the prompt's keys and values go to the static cache."""
        attached = None if attached is None else replace(attached, trusted=True)
        ids, mask = (tensor.to(self.model.marker.device) for tensor in (input_ids, attention_mask))
        for layer in self.cache.layers:
            layer.prefilling = True
        self.cache.pal_audio = None  # of the answer before
        first = self.choose(self._logits(ids, mask, attached))
        for layer in self.cache.layers:
            layer.prefilling = False
        longer = torch.nn.functional.pad(mask, (0, 1), value=1)
        positions = mask.sum(1, keepdim=True) if attached is None else attached.position_ids(first, longer)
        return first, positions, attached

    def _logits(self, ids: Tensor, mask: Tensor, attached: AttachedAudio | None) -> Tensor:
        """Logits (B, V) behind the prompt."""
        positions = (mask.cumsum(1) - 1).clamp(min=0) if attached is None else None
        outputs = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, audio_memory=attached,
            past_key_values=self.cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return outputs.logits[:, -1]  # type: ignore[no-any-return]

    def _bind(self, attached: AttachedAudio | None, positions: Tensor) -> None:
        """Let the step read this prompt's audio where it lies; what was captured for other tensors is captured anew."""
        plan, audio, block_audio, block_hears = self.plan, {}, {}, {}
        if attached is not None:
            attached.begin(positions)
            masks = {id(mask): mask[:, 0, 0].contiguous() for mask in map(attached.visible, attached.expected)}
            for layer in sorted(attached.expected):
                keys, values, tables = attached.as_kept(layer)
                audio[layer] = Keys(keys, values, masks[id(attached.visible(layer))], tables)
            block_audio = {key: attached.block_keys_values(key) for key in attached.blocks}
            block_hears = {key: attached.block_visible(key) for key in attached.blocks}
        large = [
            *(t for part in audio.values() for t in (part.keys, part.values)),
            *(t for pair in block_audio.values() for t in pair),
        ]
        small = [*(t for part in audio.values() for t in (part.seen_BT, *(part.tables or ()))), *block_hears.values()]
        small = list({id(tensor): tensor for tensor in small}.values())
        bound = (*map(place_of, large), *(place_of(tensor)[1:] for tensor in small))
        if bound == self._bound and self._compiled is not None:  # another question about the same memory
            for tensor, new in zip(self._small, small, strict=True):
                tensor.copy_(new)
            return
        plan.audio, plan.block_audio, plan.block_hears = audio, block_audio, block_hears
        plan.blocks = {} if attached is None else attached.blocks
        self.model.hook_attention()
        self._prepare()
        self._bound, self._small = bound, small

    def _prepare(self) -> None:
        """Compile and capture the step; the first run of it is checked."""
        if self._compiled is None:
            self._compiled = torch.compile(self.step, fullgraph=True, dynamic=False) if self.compile else self.step
        compiled = self._compiled
        spare = self.ids_BT.shape[1] - 2  # behind the prompt, as at least two tokens follow it
        self.column_1.fill_(spare)
        with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES), called_as_one(self._joined):
            if self.compile and self.token_B1.is_cuda:
                self.run = captured(compiled, self.token_B1.device, lambda: self.column_1.fill_(spare))
            else:
                compiled()
                self.run = called_as_one(self._joined)(compiled) if self._joined else compiled
        self._check()

    def _check(self) -> None:
        lost = len(self.cache.layers) - len(self.plan.called)
        if lost:
            raise RuntimeError(f"decoding: {lost} of {len(self.cache.layers)} layers did not attend through PAL; use generate")
        check_consumed(self.plan)
        check_entered(self.plan)

    def step(self) -> None:
        """One token of every row, from this object's tensors into them."""
        model, plan = self.model, self.plan
        plan.begin()
        plan.seen_BT.index_fill_(1, self.column_1, True)
        embeddings = model.get_input_embeddings()(self.token_B1)
        audio = {"pal_audio": plan} if plan.blocks else {}
        # A 4D mask goes through transformers as it is; our attention has its own.
        outputs = model.language_model(
            inputs_embeds=embeddings, attention_mask=plan.seen_BT[:, None, None], position_ids=self.position_B1,
            past_key_values=self.cache, use_cache=True, pal_decoding=plan, **audio,
        )  # fmt: skip
        chosen = self.choose(outputs.logits[:, -1])
        chosen = torch.where(self.ended_B[:, None], self.pad, chosen)
        self.ended_B.logical_or_((chosen == self.ends_E).any(1))
        self.column_1.add_(1)
        self.position_B1.add_(1)
        self.ids_BT.index_copy_(1, self.column_1, chosen)
        self.token_B1.copy_(chosen)
        for maps in self._joined:
            maps.forget()

    def choose(self, logits_BV: Tensor) -> Tensor:
        """The likeliest token (B, 1) that is not an audio one."""
        if len(self.never_N):
            logits_BV = logits_BV.index_fill(-1, self.never_N, -torch.inf)
        return logits_BV.argmax(-1, keepdim=True)

    @torch.no_grad()
    def run_until_end(self, num_steps: int, may_end: bool) -> None:
        """Run steps until all rows have ended, or so many. The host is at most two looks ahead of the device."""
        looks: list[tuple[Tensor, Any]] = []
        for number in range(num_steps):
            if may_end and number % CHECK_EVERY == 0:
                if self.ended_B.is_cuda:
                    flag = torch.empty((), dtype=torch.bool, pin_memory=True)
                    flag.copy_(self.ended_B.all(), non_blocking=True)
                    event = torch.cuda.Event()
                    event.record(torch.cuda.current_stream(self.token_B1.device))
                else:
                    flag, event = self.ended_B.all(), None
                looks.append((flag, event))
                if len(looks) > 1 or event is None:
                    flag, event = looks.pop(0)
                    if event is not None:
                        event.synchronize()
                    if bool(flag):
                        return
            self.run()

    def answer(self, input_ids: Tensor, max_new_tokens: int, ends: list[int]) -> Tensor:
        """Prompts and what follows them, up to where the last row ended."""
        width = input_ids.shape[1]
        whole = self.ids_BT[:, : width + max_new_tokens].clone()
        if ends:
            is_end = (whole[:, width:, None] == self.ends_E).any(-1)
            until = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, max_new_tokens)
            whole = whole[:, : width + int(until.max())]
        return whole.to(input_ids.device)
