"""`PalForConditionalGeneration`: encoders, streams and an unforked LLM behind transformers' interface.

    input_features ── encoders ── frames ── streams ── ClipTokens ─┬─ grad: LiveAudio ──────┐
                                                                   └─ no grad: AudioMemory ─┴─ attach ── LLM forward

Shapes: B rows, L text tokens, C clips, W encoder windows, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from pal_audio import encoders
from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError
from pal_audio.integration.attention import check_consumed, install
from pal_audio.integration.config import LalConfig
from pal_audio.integration.extension import check_same_positions, extend, whole_text
from pal_audio.integration.fingerprint import fingerprint
from pal_audio.integration.flamingo import check_entered, hang
from pal_audio.integration.key_values import (
    LayerKeyValues,
    embedding_rms,
    find_layers,
    has_input_norm,
    max_span,
)
from pal_audio.integration.memory import AttachedAudio, AudioMemory, ClipTokens, LiveAudio, attach
from pal_audio.integration.packing import Packing
from pal_audio.integration.proof import prove
from pal_audio.model import layer_checkpointing
from pal_audio.model.adapters import add_adapter, merge_adapter
from pal_audio.model.configuration import PalConfig
from pal_audio.model.logits import VocabularyOnly
from pal_audio.model.streaming import append_audio
from pal_audio.model.streams import Stream, frames_of, join_slots
from pal_audio.model.trained import hub_options, read_trained

MAX_WINDOWS = 16  # encoder windows in one pass without gradients: bounds memory on long clips

Features = Tensor | Frames | dict[str, Tensor | Frames]
Lengths = Tensor | dict[str, Tensor]


class PalForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """An audio-LLM: any transformers decoder that hears through PLITS, LAL, Flamingo blocks or several of them.

    Args:
        config: see `PalConfig`.
        language_model: a ready LLM without adapter; built from `config.text_config` with random weights where None.

    Raises:
        UnsupportedLlmError: LAL cannot reproduce this LLM's keys and values.
    """

    config_class = PalConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys = None

    def __init__(self, config: PalConfig, language_model: nn.Module | None = None) -> None:
        super().__init__(config)
        audio = config.audio
        self.language_model: Any = language_model or AutoModelForCausalLM.from_config(config.text_config)
        config.text_config = self.language_model.config
        text_config = self.language_model.config.get_text_config()
        self._has_lal = any(isinstance(stream.integration, LalConfig) for stream in audio.streams)
        kernel = self.language_model.config._attn_implementation or "sdpa"
        self._hooked = self._has_lal
        self.recompute_audio = False  # keep less for backward; see `LiveAudio`
        # The constructors of wrappers set "sdpa" on every sub-configuration, also where the LLM cannot have it.
        self._install_attention(kernel if self.language_model._supports_sdpa else "eager")
        on_meta = any(parameter.is_meta for parameter in self.language_model.parameters())
        init_rms = 1.0 if on_meta else embedding_rms(self.language_model)
        self.encoders = nn.ModuleDict({name: encoders.build(item) for name, item in audio.encoders.items()})
        own_norm = self._has_lal and not has_input_norm(find_layers(self.language_model)[0])
        sizes = text_config.hidden_size, text_config.num_hidden_layers, getattr(text_config, "num_attention_heads", 0)
        self.streams = nn.ModuleList([Stream(item, audio, *sizes, own_norm, init_rms) for item in audio.streams])
        self.marker = nn.Parameter(torch.randn(text_config.hidden_size) * init_rms)
        self._audio = audio
        key_streams = [stream for stream in self.streams if stream.gives_keys]
        self._key_layers = [frozenset(stream.layers) for stream in key_streams]
        self._blocks = {(s, block.index): block for s, item in enumerate(key_streams) for block in (item.blocks or {}).values()}
        lal_layers = {layer for stream in key_streams if stream.blocks is None for layer in stream.layers}
        self._rules = {layer: LayerKeyValues(self.language_model, layer) for layer in sorted(lal_layers)}
        if self._blocks:
            hang(find_layers(self.language_model), (layer for _, layer in self._blocks))
        self.post_init()
        if config.adapter_config is not None:  # last: `post_init` would give the adapter the random weights of an LLM's linear
            add_adapter(self.language_model, config.adapter_config)
        if not on_meta:
            self.prove_llm()

    # ---- Hugging Face's hooks -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', and the LLM is proved again; a folder that lacks a weight of ours is an error.

        A folder of trained parts is completed by its bases; see `model.trained`.

        Raises:
            PalError: parameters are missing in the checkpoint (they would be left unset), or a base is not the right one.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        path = pretrained_model_name_or_path
        config = kwargs.get("config") or PalConfig.from_pretrained(path, **hub_options(kwargs))
        if config.bases is not None:
            model = read_trained(cls, str(path), **kwargs | {"config": config})
            return (model, {"missing_keys": set(), "unexpected_keys": set()}) if wants_info else model
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise PalError(f"the checkpoint lacks {len(missing)} weights of this model, the first is {missing[0]!r}")
        model.prove_llm()
        return (model, info) if wants_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module of ours initialises itself, and the LLM's own class initialises the LLM."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The LLM's own; the ids of marker and slots need no row."""
        return self.language_model.resize_token_embeddings(*args, **kwargs)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], *args: Any, **kwargs: Any) -> None:
        """Choose the *inner* kernel of the LLM's attention, "sdpa" or "eager"; audio stays hooked.

        Raises:
            PalError: another name.
        """
        if isinstance(attn_implementation, dict):
            attn_implementation = attn_implementation.get("text_config", attn_implementation.get("", "sdpa"))
        self._install_attention(attn_implementation)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Non-reentrant checkpointing of the LLM's layers.

        Raises:
            PalError: `use_reentrant=True` was asked for; audio tokens are shared by layers, which it cannot follow.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options["use_reentrant"]:
            raise PalError(
                "gradient checkpointing with use_reentrant=True loses the graph of audio tokens; use use_reentrant=False"
            )
        layer_checkpointing.enable(self.language_model, **options)

    def gradient_checkpointing_disable(self) -> None:
        layer_checkpointing.disable(self.language_model)

    def _install_attention(self, inner: str) -> None:
        """Hook the LLM's attention where a stream enters by LAL or a batch was packed; else it keeps its stock attention."""
        install(self.language_model, inner, self._hooked)

    def hook_attention(self) -> None:
        """Let packing and decoding into an LLM's attention that was left as it is; without them nothing changes."""
        if not self._hooked:
            self._hooked = True
            self._install_attention(self.language_model.config._attn_implementation)

    def prove_llm(self) -> None:
        """Compare our keys and values of each LAL layer with the layer's own; see `integration.proof`."""
        prove(list(self._rules.values()))

    def merge_adapter(self) -> None:
        """Add the LLM's adapter to the weights that it stands on and take it out, in place; without one nothing changes."""
        if self.config.adapter is not None:
            merge_adapter(self.language_model)
            self.config.adapter = None
            self.prove_llm()

    # ---- sound ----------------------------------------------------------------------------------------------------

    def encode(
        self,
        input_features: Features,
        audio_num_samples: Lengths,
        max_windows: int | None = None,
        first_frames: dict[str, int] | None = None,
    ) -> LiveAudio:
        """Run encoders and connectors: clips with everything but each layer's keys and values.

        Args:
            input_features: (W, ...) windows of all clips, or the `Frames` that a frozen encoder gave for them before (a frame
                cache); a dict by encoder name where the model has several encoders.
            audio_num_samples: (C,) int64 samples of each clip; likewise.
            max_windows: encoder windows in one pass; None = all.
            first_frames: by encoder name, frames that the clips have already; see `append_audio`.

        Raises:
            PalError: frames are not of this encoder's shape, or of one that is not frozen while gradients are on.
        """
        per_stream = self._stream_tokens(input_features, audio_num_samples, max_windows, first_frames)
        num_clips = len(per_stream[0][1])
        slots, keys, inputs, widths = [], [], [], []
        for stream, (tokens, lengths) in zip(self.streams, per_stream, strict=True):
            if not stream.gives_keys:
                slots.append((tokens[0], lengths))
            else:
                keys.append(lengths)
                widths.append(tokens[0].shape[1])
                inputs.append(stream.layer_inputs(tokens))
        none = torch.zeros(num_clips, dtype=torch.int64)
        slots_CAD, num_slots_C = join_slots(slots) if slots else (None, none)
        num_keys_SC = torch.stack(keys) if keys else none.new_zeros(0, num_clips)
        with_positions = [lengths for stream, (_, lengths) in zip(self.streams, per_stream, strict=True) if stream.blocks is None]
        clips = ClipTokens(slots_CAD, num_slots_C, num_keys_SC, torch.stack([none, *with_positions]).amax(0))
        return LiveAudio(clips, inputs, self._key_layers, widths, recompute=self.recompute_audio)

    @torch.no_grad()
    def encode_audio(self, input_features: Features, audio_num_samples: Lengths) -> AudioMemory:
        """Encode clips once for any number of prompts.

        Args:
            input_features, audio_num_samples: as the processor gives them; see `encode`.
        """
        with self._in_eval_mode():
            live = self.encode(input_features, audio_num_samples, MAX_WINDOWS)
            memory = AudioMemory.of(live, self._rules, self._blocks, self.audio_fingerprint())
        samples = {name: item.cpu().to(torch.int64) for name, item in self._by_encoder(audio_num_samples).items()}
        return replace(memory, samples=samples)

    @torch.no_grad()
    def append_audio(
        self, memory: AudioMemory, input_features: Features, audio_num_samples: Lengths, clip: int = -1
    ) -> AudioMemory:
        """A memory in which one clip goes on by a chunk of sound: a live stream. `memory` itself does not change.

        Args:
            memory: of this model.
            input_features, audio_num_samples: of the chunk alone, one clip, as the processor gives them.
            clip: which clip of the memory goes on.

        Returns:
            What encoding that clip's whole sound would give: what is there keeps its place and value.

        Raises:
            PalError: the clip does not end where an encoder window and a token end (the message names the next such time), a
                connector reads the whole clip, or the memory is another model's.
        """
        return append_audio(self, memory, input_features, audio_num_samples, clip, MAX_WINDOWS)

    @torch.no_grad()
    def get_audio_features(self, input_features: Features, audio_num_samples: Lengths) -> list[tuple[Tensor, Tensor]]:
        """Audio tokens of each stream before the integration: (tokens CAD, lengths (C,)) in the order of the streams."""
        with self._in_eval_mode():
            per_stream = self._stream_tokens(input_features, audio_num_samples, MAX_WINDOWS)
        return [(tokens[-1], lengths) for tokens, lengths in per_stream]

    def _stream_tokens(
        self,
        input_features: Features,
        audio_num_samples: Lengths,
        max_windows: int | None,
        first_frames: dict[str, int] | None = None,
    ) -> list[tuple[list[Tensor], Tensor]]:
        """Tokens and lengths of every stream; each encoder runs once, however many streams read it."""
        device = self.marker.device
        features = {name: item.to(device, non_blocking=True) for name, item in self._by_encoder(input_features).items()}
        samples = {name: item.cpu() for name, item in self._by_encoder(audio_num_samples).items()}
        frames = {
            name: frames_of(name, encoder, features[name], samples[name], max_windows) for name, encoder in self.encoders.items()
        }
        first = dict.fromkeys(self.encoders, 0) | (first_frames or {})
        return [stream.tokens(frames[stream.config.encoder], first[stream.config.encoder]) for stream in self.streams]

    @contextmanager
    def _in_eval_mode(self) -> Iterator[None]:
        """A memory has no dropout in it, also in the middle of training; every module goes back to its own mode."""
        training = [module for module in self.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def audio_fingerprint(self) -> str:
        """What an audio memory depends on: encoders, connectors, P_l, the LAL layers' key/value path, dtype, configuration."""
        modules = [self.encoders, self.streams, *(module for rule in self._rules.values() for module in rule.modules())]
        return fingerprint(modules, [self.config.audio_config, self.config.adapter])

    def _by_encoder(self, value: Any) -> dict[str, Any]:
        names = list(self.encoders)
        if isinstance(value, Tensor | Frames):
            if len(names) > 1:
                raise PalError(f"this model has encoders {names}: pass a dict by encoder name, as the processor does")
            value = {names[0]: value}
        return {name: value[name] for name in names}

    def _learns_to_hear(self) -> bool:
        return any(p.requires_grad for p in (self.marker, *self.encoders.parameters(), *self.streams.parameters()))

    def _dummy(self) -> LiveAudio:
        """A hidden clip of one sample, so that a batch without audio still touches every trainable part; see `_context`."""
        features: dict[str, Tensor | Frames] = {}
        samples = {}
        for name, config in self._audio.encoders.items():
            features[name] = config.front_end()(np.zeros(1, dtype=np.float32))
            samples[name] = torch.ones(1, dtype=torch.int64)
        live = self.encode(features, samples)
        live.hidden = True
        return live

    def attach(
        self, audio: AudioMemory | LiveAudio, input_ids: Tensor, attention_mask: Tensor | None = None, remember: bool = True
    ) -> AttachedAudio:
        """Place clips in a full prompt.

        Args:
            audio: clips in the order of the batch's markers.
            input_ids, attention_mask: (B, L).
            remember: see `integration.memory.attach`.

        Raises:
            PalError: another model's memory; markers, slots and clips that do not match; a span beyond the LLM's context.
        """
        if isinstance(audio, AudioMemory):
            self._check_fingerprint(audio)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return attach(
            audio,
            input_ids,
            mask,
            self._audio_ids,
            self._rules,
            self._blocks,
            self._key_layers,
            self._audio.positions,
            self.marker.device,
            self._audio.summary_sees_audio,
            max_span(self.language_model.config.get_text_config()),
            remember=remember,
        )

    def _check_fingerprint(self, memory: AudioMemory) -> None:
        if memory.fingerprint != self.audio_fingerprint():
            raise PalError("this audio memory was made by another model (or before its weights changed); encode the audio again")

    @property
    def audio_ids_or_none(self) -> tuple[int, ...]:
        """Ids of the marker and of slots; empty where the config has none."""
        return () if self.config.audio_token_id is None else self._audio_ids

    def attached(self, input_ids: Tensor, attention_mask: Tensor, remember: bool, **audio: Any) -> AttachedAudio | None:
        """The audio of a generation, placed in its prompt; None without audio. `audio` as in `forward`."""
        names = ("input_features", "audio_num_samples", "audio_memory")
        features, samples, memory = (audio.pop(name, None) for name in names)
        context = self._context(input_ids, attention_mask, features, samples, memory, remember=remember, **audio)
        return None if context is None else replace(context, trusted=True)

    @property
    def _audio_ids(self) -> tuple[int, int]:
        if self.config.audio_token_id is None or self.config.audio_slot_token_id is None:
            raise PalError("the model's config has no audio_token_id; build it with its processor")
        return self.config.audio_token_id, self.config.audio_slot_token_id

    # ---- one forward ----------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        input_features: Features | None = None,
        audio_num_samples: Lengths | None = None,
        audio_memory: AudioMemory | AttachedAudio | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        packed: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The LLM's forward over text and audio.

        Args:
            input_ids: (B, L), with marker and slot ids where clips stand. It, the mask and the labels may be on the CPU whatever
                the model's device: then clips are placed and rows packed without waiting for the accelerator.
            attention_mask: (B, L), or (B, cached + L); all ones if None.
            position_ids: (B, L); made from the clips' spans if None.
            input_features, audio_num_samples: clips, in the order of the markers; see `encode`.
            audio_memory: instead of features: what `encode_audio` or `attach` gave. Behind a kept cache, features and memory
                are of the new clips alone or of all clips of the whole text.
            labels: (B, L), -100 = not supervised.
            packed: take the batch, padded on the right, through the LLM as one row without its padding; no row sees another
                (`integration.packing`). With labels, logits are computed at supervised positions only and come as (1, n, V).

        Raises:
            PalError: markers and clips do not match, or a packed batch has a cache or is padded on the left.
            RuntimeError: audio did not reach a LAL layer.
        """
        if input_ids is None:
            if input_features is not None or audio_memory is not None:
                raise PalError("audio needs input_ids that hold its markers; inputs_embeds alone do not say where it stands")
            return self.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, labels=labels, use_cache=use_cache, logits_to_keep=logits_to_keep, **kwargs,
            )  # fmt: skip
        if input_features is None and audio_memory is None:
            audio_memory = _audio_of(past_key_values)
        context = self._context(input_ids, attention_mask, input_features, audio_num_samples, audio_memory, past_key_values)
        if labels is not None:
            labels = labels.masked_fill(self._is_audio(input_ids).to(labels.device), -100)
        packing = self._packing(input_ids, attention_mask, past_key_values) if packed else None
        supervised = None if packing is None or labels is None else packing.supervised(labels)
        input_ids, attention_mask, labels = (_moved(item, self.marker.device) for item in (input_ids, attention_mask, labels))
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(self._is_audio(input_ids), 0))
        if context is not None:
            if attention_mask is None:  # a position jump without a mask is read as packing
                past = past_key_values.get_seq_length() if past_key_values is not None else 0
                attention_mask = input_ids.new_ones(input_ids.shape[0], input_ids.shape[1] + past)
            position_ids = self._positions(context, input_ids, attention_mask, position_ids)
            inputs_embeds = context.embed(input_ids, position_ids, inputs_embeds, self.marker)
            context.begin(position_ids)
            if context.expected or context.blocks:
                kwargs["pal_audio"] = context
        if packing is not None:
            outputs = self._packed(packing, inputs_embeds, position_ids, supervised, **kwargs)
        else:
            outputs = self.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, labels=labels, use_cache=use_cache, logits_to_keep=logits_to_keep, **kwargs,
            )  # fmt: skip
        if context is not None:
            check_consumed(context)
            check_entered(context)
            if outputs.past_key_values is not None and not torch.compiler.is_compiling():
                outputs.past_key_values.pal_audio = context  # so that a cache is never continued without its audio
        return outputs

    def _packing(self, input_ids: Tensor, attention_mask: Any, past_key_values: Any) -> Packing:
        if past_key_values is not None:
            raise PalError("packed: there is no packing with a text cache; it is for training and scoring")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise PalError("packed: needs a 2D attention mask")
        self.hook_attention()
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return Packing.of(mask, self.language_model.config.get_text_config())

    def _packed(
        self,
        packing: Packing,
        embeddings_BLD: Tensor,
        position_ids: Tensor | None,
        supervised: tuple[Tensor, Tensor] | None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The LLM over a packed row; logits (B, L, V), or with labels (1, n, V) at the n positions before a supervised token."""
        packing = packing.to(embeddings_BLD.device)
        if position_ids is None:
            position_ids = torch.arange(embeddings_BLD.shape[1], device=embeddings_BLD.device).expand(embeddings_BLD.shape[:2])
        embeddings = packing.pack(embeddings_BLD)
        if supervised is not None:
            kwargs["logits_to_keep"] = supervised[0].to(embeddings.device, non_blocking=True)
        # A 4D mask goes through transformers as it is; our attention makes its own.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device)
        outputs = self.language_model(
            inputs_embeds=embeddings, attention_mask=mask,
            position_ids=packing.pack(position_ids), pal_packing=packing, **kwargs | {"use_cache": False},
        )  # fmt: skip
        packing.check_called(self.language_model.config.get_text_config().num_hidden_layers)
        if supervised is None:
            outputs.logits = packing.unpack(outputs.logits)
        else:
            targets = supervised[1].to(embeddings.device, non_blocking=True)[None]
            outputs.loss = self.language_model.loss_function(
                outputs.logits, targets, outputs.logits.shape[-1], num_items_in_batch=num_items_in_batch, shift_labels=targets
            )
        return outputs

    def _is_audio(self, input_ids: Tensor) -> Tensor:
        if self.config.audio_token_id is None:
            return torch.zeros_like(input_ids, dtype=torch.bool)
        marker_id, slot_id = self._audio_ids
        return (input_ids == marker_id) | (input_ids == slot_id)

    @staticmethod
    def _positions(context: AttachedAudio, input_ids: Tensor, attention_mask: Any, position_ids: Tensor | None) -> Tensor:
        """Position ids (B, L): the caller's, checked against the clips', or made from them."""
        is_2d = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
        if position_ids is None and not is_2d:
            raise PalError("position_ids: needed beside a 4D attention mask when there is audio")
        if position_ids is None:
            return context.position_ids(input_ids, attention_mask)
        position_ids = position_ids.expand(input_ids.shape[0], -1)
        if not context.trusted and is_2d:
            expected = context.position_ids(input_ids, attention_mask)
            shown = attention_mask[:, -input_ids.shape[1] :].bool()
            if not torch.equal(position_ids[shown], expected[shown]):
                raise PalError("position_ids do not leave room for the clips' spans; leave them out, the model makes them")
        return position_ids

    def _context(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        input_features: Features | None,
        audio_num_samples: Lengths | None,
        audio: AudioMemory | AttachedAudio | LiveAudio | None,
        past_key_values: Any = None,
        remember: bool = True,
    ) -> AttachedAudio | None:
        if isinstance(audio, AttachedAudio):
            if not audio.trusted:
                past = past_key_values.get_seq_length() if past_key_values is not None else 0
                is_2d = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
                audio.check(input_ids, attention_mask.shape[1] if is_2d else past + input_ids.shape[1])  # type: ignore[union-attr]
            return audio
        if input_features is not None:
            if audio is not None:
                raise PalError("give input_features or audio_memory, not both")
            if audio_num_samples is None:
                raise PalError("input_features need audio_num_samples beside them, as the processor gives them")
            # A sharded layer's tensors are whole inside its own forward alone, so that no memory can be made of it beforehand.
            if torch.is_grad_enabled() or isinstance(self, FSDPModule):
                audio = self.encode(input_features, audio_num_samples)
            else:
                audio = self.encode_audio(input_features, audio_num_samples)
        if audio is None:
            num_audio = int(self._is_audio(input_ids).sum())
            if num_audio:
                num_markers = int((input_ids == self._audio_ids[0]).sum())
                what = f"{num_markers} audio markers" if num_markers else f"{num_audio} audio slots"
                raise PalError(f"the text holds {what} but no audio was given")
            if not (self.training and torch.is_grad_enabled() and self._learns_to_hear()):
                return None
            audio = self._dummy()
        if past_key_values is not None and (past_key_values.get_seq_length() or _audio_of(past_key_values) is not None):
            return self._attach_behind(audio, input_ids, attention_mask, past_key_values)
        return self.attach(audio, input_ids, attention_mask, remember)

    def _attach_behind(
        self, memory: AudioMemory | LiveAudio, input_ids: Tensor, mask: Tensor | None, cache: Any
    ) -> AttachedAudio:
        """Place clips where a text cache is kept: the new ones behind it alone, or all clips of the whole text.

        Raises:
            PalError: the cached text would move, or clips and markers do not match.
        """
        if isinstance(memory, LiveAudio):
            raise PalError(
                "new sound beside a kept text cache is for inference: call under torch.no_grad(), or leave the cache out"
            )
        known = _audio_of(cache)
        if mask is None:
            mask = torch.ones(input_ids.shape[0], cache.get_seq_length() + input_ids.shape[1], dtype=torch.int64)
        if mask.ndim != 2:
            raise PalError("new sound beside a kept text cache needs a 2D attention mask")
        whole = whole_text(known, input_ids, mask)
        if known is None or memory.num_markers == int((whole == self._audio_ids[0]).sum()):
            attached = self.attach(memory, whole, mask)
            if known is not None:
                check_same_positions(known, attached.placement)
            return attached
        self._check_fingerprint(memory)
        limit = max_span(self.language_model.config.get_text_config())
        sees = self._audio.summary_sees_audio
        return extend(known, memory, whole, mask, self._audio.positions, self.marker.device, sees, limit)

    # ---- generation -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        input_features: Features | None = None,
        audio_num_samples: Lengths | None = None,
        audio_memory: AudioMemory | AttachedAudio | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`; clips as in `forward`, encoded once before rows are expanded for beams or returns."""
        if input_ids is None:
            input_ids = kwargs.pop("inputs", None)
        if input_ids is None:
            if input_features is not None or audio_memory is not None:
                raise PalError("generate: audio needs input_ids that hold its markers")
            return super().generate(**kwargs)
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = self._mask_without_padding(input_ids, kwargs.get("generation_config") or self.generation_config)
        cache = kwargs.get("past_key_values")
        if input_features is None and audio_memory is None:
            audio_memory = _audio_of(cache)
        elif isinstance(audio_memory, AttachedAudio):
            audio_memory = replace(audio_memory, trusted=False)
        context = self._context(input_ids, mask, input_features, audio_num_samples, audio_memory, cache)
        if context is not None:
            if kwargs.get("assistant_model") is not None:
                raise PalError("assistant_model: an assistant does not hear; generate with audio works without one")
            kwargs |= {"audio_memory": replace(context, trusted=True), "attention_mask": mask}
        return super().generate(input_ids, **kwargs)

    @staticmethod
    def _mask_without_padding(input_ids: Tensor, options: Any) -> Tensor:
        """The mask that transformers infers where none is given: padding is hidden unless it is also the end token."""
        pad, end = options.pad_token_id, options.eos_token_id
        ends = end if isinstance(end, list) else [end]
        if pad is None or pad in ends:
            return torch.ones_like(input_ids)
        return input_ids.ne(pad).long()

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        audio = kwargs.pop("audio_memory", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, *args, **kwargs)
        if audio is not None:
            model_kwargs["audio_memory"] = audio.expand(expand_size) if expand_size > 1 else audio
        return input_ids, model_kwargs

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        audio, mask = model_kwargs.get("audio_memory"), model_kwargs.get("attention_mask")
        if audio is None:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        ids = model_kwargs.get("input_ids", inputs_tensor)
        return audio.position_ids(ids, torch.ones_like(ids) if mask is None else mask)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        return VocabularyOnly(super()._get_logits_processor(*args, **kwargs), self._audio_ids)


def _moved(tensor: Any, device: torch.device) -> Any:
    return tensor.to(device, non_blocking=True) if isinstance(tensor, Tensor) else tensor


def _audio_of(cache: Any) -> AttachedAudio | None:
    """The audio that a text cache was made with; what follows it is checked."""
    audio = getattr(cache, "pal_audio", None)
    return None if audio is None else replace(audio, trusted=False)
