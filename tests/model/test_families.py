"""What single families of LLMs need beyond the matrix of the invariants, and the families that are refused."""

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from pal_audio.errors import PalError
from pal_audio.integration.key_values import UnsupportedLlmError
from pal_audio.model import PalConfig, PalForConditionalGeneration, preset
from pal_audio.training.groups import GROUPS
from tests.model.test_packing import CONVERSATIONS, training_batch
from tests.tiny import EAGER_ONLY, FAMILIES, TINY_ENCODER, batch, llm_config, message, noise, tiny_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
GQA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
WINDOWS = {**GQA, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2}
LATENT = {**GQA, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
# Fields of a tiny one, and what the error says: why it is refused is in the layer's own code.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "exaone4": (WINDOWS, "the keys of layer 1 differ"),  # layers without a window do not rotate
    "afmoe": ({**WINDOWS, **EXPERTS, "head_dim": 8, "num_experts": 4}, "the keys of layer 1 differ"),  # likewise
    "apertus": (GQA, "the values of layer 0 differ"),  # its norm has another name; a norm of keys hides that from them
    "hunyuan_v1_dense": ({**GQA, "head_dim": 8}, "the keys of layer 0 differ"),  # keys are normed after rotation
    "lfm2": (GQA, "the keys of layer 0 differ"),  # both norms have other names
    "diffllama": (GQA, "the results of the attention of layer 0 differ"),
    "deepseek_v3": (
        {**LATENT, **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
        r"layer 0 \(DeepseekV3Attention\) has no key and value projections",
    ),
    "minicpm3": ({**LATENT, "num_key_value_heads": 4}, r"layer 0 \(MiniCPM3Attention\) has no key and value projections"),
    "recurrent_gemma": (
        {**GQA, "lru_width": 32, "head_dim": 8, "attention_window_size": 6},
        r"layer 0 \(RecurrentGemmaDecoderLayer\) has no key and value projections",
    ),
    "qwen3_next": (
        {**GQA, **EXPERTS, "head_dim": 8, "num_experts": 4, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
         "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        "the attention of its layers does not go through",
    ),
    "xglm": (
        {"d_model": 32, "ffn_dim": 48, "num_layers": 4, "attention_heads": 4},
        "the attention of its layers does not go through",
    ),
    "bert": ({**SIZES, "intermediate_size": 48, "is_decoder": True}, "BertModel has no list of decoder layers"),
}  # fmt: skip


@pytest.mark.parametrize("family", list(REFUSED))
def test_a_family_outside_the_rule_is_refused_by_name_when_the_model_is_built(family: str) -> None:
    fields, words = REFUSED[family]
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this release of transformers has no {family}")
    torch.manual_seed(0)
    text = CONFIG_MAPPING[family](vocab_size=64, pad_token_id=0, bos_token_id=None, eos_token_id=1, **fields)
    with pytest.raises(UnsupportedLlmError, match=f"^{family}: {words}") as caught:
        PalForConditionalGeneration(PalConfig(text, preset("lal", TINY_ENCODER), 64, 65))
    assert "\n" not in str(caught.value)
    PalForConditionalGeneration(PalConfig(text, preset("plits", TINY_ENCODER), 64, 65))


@pytest.mark.parametrize("arm", ["plits", "lal"])
@pytest.mark.parametrize("family", EAGER_ONLY)
def test_a_soft_cap_and_sinks_are_never_given_to_sdpa(family: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model(family, arm)
    for kernel in ("sdpa", {"text_config": "sdpa"}):
        with pytest.raises(PalError, match=rf"attn_implementation 'sdpa': {family} does not support it \(soft-cap or sinks\)"):
            model.set_attn_implementation(kernel)
    assert model.language_model.config._attn_implementation == {"plits": "eager", "lal": "pal_eager"}[arm]
    if family == "gemma2":  # releases of transformers say that SDPA is supported, and lose the soft-cap
        monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
        model, _ = tiny_model(family, arm)
        assert model.language_model.config._attn_implementation == {"plits": "eager", "lal": "pal_eager"}[arm]


def test_the_table_of_learned_positions_is_not_left() -> None:
    """GPT-2: under `zero`, too, slots and text need rows of the table; audio keys need none."""
    options: dict[str, Any] = {"llm": {"max_position_embeddings": 40}, "connector": {"type": "mlp", "stride": 1}}
    short, long = message(noise(0.2), question="a", system=None), message(noise(1.5), question="a", system=None)
    for arm, positions, words in (
        ("lal", "span", "trained on 40; use `positions: zero`"),
        ("plits", "zero", r"audio slots and text take \d+ positions but the LLM has 40; use shorter text"),
    ):
        model, processor = tiny_model("gpt2", arm, positions=positions, **options)
        with torch.no_grad():
            model(**batch(processor, [short]))
            with pytest.raises(PalError, match=words):
                model(**batch(processor, [long]))
    model, processor = tiny_model("gpt2", "lal", positions="zero", **options)
    with torch.no_grad():
        model(**batch(processor, [long]))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_dropout_is_the_same_in_the_recomputation_of_a_checkpoint(family: str) -> None:
    """GPT-2 has dropout by default; it reaches weights over audio through our attention."""
    dropout = {"gpt2": {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2},
               "gpt_neox": {"hidden_dropout": 0.2, "attention_dropout": 0.2}}[family]  # fmt: skip
    results = []
    for checkpointing in (False, True):
        model, processor = tiny_model(family, "pal", llm=dropout)
        inputs = training_batch(processor, CONVERSATIONS[:2])
        with torch.no_grad():
            expected = model(**inputs).loss
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(1)
        loss = model(**inputs, use_cache=False).loss
        assert not torch.allclose(loss, expected)
        loss.backward()
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_packed_experts_are_balanced_by_the_same_loss() -> None:
    model, processor = tiny_model("qwen3_moe", "pal", llm={"output_router_logits": True, "router_aux_loss_coef": 0.3})
    inputs = training_batch(processor, CONVERSATIONS)
    with torch.no_grad():
        plain, packed = model(**inputs), model(**inputs, packed=True)
        model.language_model.config.output_router_logits = False
        without = model(**inputs)
    torch.testing.assert_close(packed.loss, plain.loss)
    assert (plain.loss - without.loss).abs() > 0.1


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_parts_that_a_stage_can_train_are_what_they_are_called(family: str) -> None:
    names = [name for name, _ in tiny_model(family, "plits")[0].named_parameters() if name.startswith("language_model.")]
    parts = {part: {name for name in names if GROUPS[f"llm.{part}"](name)} for part in ("attention", "ffn", "norm", "embeddings")}
    assert sum(map(len, parts.values())) == len(names)
    assert all(re.search(r"\.(layers|h)\.\d+\.(self_attn|attention|attn)\.", name) for name in parts["attention"])
    assert all(re.search(r"\.(layers|h)\.\d+\.mlp\.", name) for name in parts["ffn"])
    assert all(re.search(r"norm|ln_[12f]", name) for name in parts["norm"])
    assert {name.split(".")[-2] for name in parts["embeddings"]} <= {"embed_tokens", "embed_in", "wte", "wpe", "lm_head"}
    assert all(parts.values())


def test_a_ready_llm_keeps_its_kernel_of_experts() -> None:
    """transformers sets the kernel of sub-configurations anew in a wrapper's constructor; without one, experts run in a loop."""
    llm = AutoModelForCausalLM.from_config(llm_config("qwen3_moe", 64))
    chosen = llm.config._experts_implementation
    assert chosen is not None
    model = PalForConditionalGeneration(PalConfig(llm.config, preset("lal", TINY_ENCODER), 64, 65), llm)
    assert model.language_model.config._experts_implementation == chosen
