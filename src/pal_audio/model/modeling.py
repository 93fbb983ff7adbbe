"""`PalForConditionalGeneration`: encoders, streams and an unforked LLM behind transformers' interface.

    input_features ── sound.py ── clips ── placing.py ── AttachedAudio ──┐
    input_ids ──────────────────── embeddings ───────────────────────────┴─ LLM forward ── logits
                                                                            (packed_run.py: a batch as one row)
    generation.py: the same, one token after another

Shapes: B rows, L text tokens, D width.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from pal_audio import encoders
from pal_audio.errors import PalError
from pal_audio.integration.attached import AttachedAudio, attach
from pal_audio.integration.attention import check_consumed, has_sdpa, install
from pal_audio.integration.config import LalConfig
from pal_audio.integration.fingerprint import Fingerprint
from pal_audio.integration.flamingo import check_entered, hang
from pal_audio.integration.key_values import (
    LayerKeyValues,
    embedding_rms,
    find_layers,
    guard_learned_positions,
    has_input_norm,
    max_positions,
)
from pal_audio.integration.memory import AudioMemory, LiveAudio
from pal_audio.integration.proof import prove
from pal_audio.integration.training_attention import DEFAULT_KERNEL, AudioKernel, StepKernel, find_kernel
from pal_audio.integration.unprojected import DEFAULT_PROJECTIONS
from pal_audio.model import layer_checkpointing
from pal_audio.model.adapters import add_adapter, merge_adapter
from pal_audio.model.configuration import PalConfig
from pal_audio.model.generation import PalGenerationMixin
from pal_audio.model.packed_run import packing_of, run_packed
from pal_audio.model.placing import audio_of, context_of, is_audio, positions_of
from pal_audio.model.sound import Features, Lengths, SoundMixin
from pal_audio.model.streams import Stream
from pal_audio.model.tied_embedding import find_tied
from pal_audio.model.trained import hub_options, read_trained
from pal_audio.transfer import send


class PalForConditionalGeneration(SoundMixin, PreTrainedModel, PalGenerationMixin):
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
        self.recompute_audio = "none"  # see `integration.recompute`
        self.adds_tied_gradient = False  # see `model.tied_embedding`; set by `model.compiling`
        self.projections_at_once = 1  # LAL layers that project audio by one product in a training step; see `model.compiling`
        self.projections = DEFAULT_PROJECTIONS  # in a training step, by LAL layers; see `integration.unprojected`
        self.audio_kernel: AudioKernel = DEFAULT_KERNEL  # of training steps; see `integration.training_attention`
        # The constructors of wrappers set "sdpa" on every sub-configuration, also where the LLM cannot have it.
        self._install_attention(kernel if has_sdpa(self.language_model) else "eager")
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
        self._fingerprint = Fingerprint()
        self._rules = {layer: LayerKeyValues(self.language_model, layer) for layer in sorted(lal_layers)}
        if self._blocks:
            hang(find_layers(self.language_model), (layer for _, layer in self._blocks))
        guard_learned_positions(self.language_model)
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

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, under every move and cast: what weights leave behind is not kept."""
        self._fingerprint.forget()
        return super()._apply(*args, **kwargs)

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

    # ---- clips in text ----------------------------------------------------------------------------------------------

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
            self.check_fingerprint(audio)
        return self.place(audio, input_ids, attention_mask, self.marker.device, remember)

    def place(
        self, audio: AudioMemory | LiveAudio, input_ids: Tensor, mask: Tensor | None, device: torch.device, remember: bool
    ) -> AttachedAudio:
        """`attach` for who knows that the memory is this model's; what is placed lies on `device`."""
        mask = torch.ones_like(input_ids) if mask is None else mask
        return attach(
            audio,
            input_ids,
            mask,
            self.config.audio_ids,
            self._rules,
            self._blocks,
            self._key_layers,
            self._audio.positions,
            device,
            self._audio.summary_sees_audio,
            max_positions(self.language_model, self._audio.positions),
            remember=remember,
        )

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
            audio_memory = audio_of(past_key_values)
        context = context_of(self, input_ids, attention_mask, input_features, audio_num_samples, audio_memory, past_key_values)
        if labels is not None:
            labels = labels.masked_fill(is_audio(self.config, input_ids).to(labels.device), -100)
        packing = packing_of(self.language_model, input_ids, attention_mask, past_key_values) if packed else None
        supervised = None if packing is None or labels is None else packing.supervised(labels)
        input_ids, attention_mask, labels = (_moved(item, self.marker.device) for item in (input_ids, attention_mask, labels))
        is_learnt = self.adds_tied_gradient and inputs_embeds is None and labels is not None
        tied = find_tied(self) if is_learnt else None
        if inputs_embeds is None:
            text_ids = input_ids.masked_fill(is_audio(self.config, input_ids), 0)
            inputs_embeds = self.get_input_embeddings()(text_ids) if tied is None else tied.embed(text_ids)
        if context is not None:
            if attention_mask is None:  # a position jump without a mask is read as packing
                past = past_key_values.get_seq_length() if past_key_values is not None else 0
                attention_mask = input_ids.new_ones(input_ids.shape[0], input_ids.shape[1] + past)
            position_ids = positions_of(context, input_ids, attention_mask, position_ids)
            inputs_embeds = context.embed(input_ids, position_ids, inputs_embeds, self.marker)
            context.begin(position_ids, self._step_kernel(context))
            if context.expected or context.blocks:
                kwargs["pal_audio"] = context
        with nullcontext() if tied is None else tied.as_head():
            if packing is not None:
                self.hook_attention()
                outputs = run_packed(self.language_model, packing, inputs_embeds, position_ids, supervised, **kwargs)
            else:
                outputs = self.language_model(
                    inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, labels=labels,
                    past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep, **kwargs,
                )  # fmt: skip
        if context is not None:
            check_consumed(context)
            check_entered(context)
            if outputs.past_key_values is not None and not torch.compiler.is_compiling():
                outputs.past_key_values.pal_audio = context  # so that a cache is never continued without its audio
        return outputs

    def _step_kernel(self, context: AttachedAudio) -> StepKernel | None:
        """The kernel of LAL layers in a forward that learns."""
        kernel = find_kernel(self.audio_kernel, self.marker.device) if torch.is_grad_enabled() else None
        return kernel if context.expected else None


def _moved(tensor: Any, device: torch.device) -> Any:
    return send(tensor, device) if isinstance(tensor, Tensor) else tensor
