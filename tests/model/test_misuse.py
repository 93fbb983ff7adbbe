"""Uses that once gave wrong answers in silence, or failed without saying why."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.integration.key_values import UnsupportedLlmError
from pal_audio.model import ModelSpec, PalConfig, PalForConditionalGeneration, build_model, preset
from pal_audio.model.building import check_spec, outline_config
from pal_audio.model.decoding import greedy
from pal_audio.model.tokenizer import train_tokenizer
from tests.tiny import RATE_HZ, TINY_ENCODER, batch, message, noise, perturb, tiny_model

CLIP = noise(0.5)
NOISY = {**TINY_ENCODER, "dropout": 0.3, "spec_augment": True}


def prompt(arm: str = "pal", **options: Any) -> tuple[Any, Any, Any]:
    model, processor = tiny_model("llama", arm, **options)
    return model, processor, batch(processor, [message(CLIP)])


def encoded(model: Any, inputs: Any) -> Any:
    return model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])


@pytest.mark.parametrize("change", ["fused step", "data", "config", "adapter switched off"])
def test_a_memory_is_refused_after_any_change(change: str) -> None:
    model, _, inputs = prompt("lal")
    if change == "adapter switched off":
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["k_proj"], init_lora_weights=False))
    memory = encoded(model, inputs)
    with torch.no_grad():
        model(inputs["input_ids"], audio_memory=memory)
    if change == "fused step":
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=True)
        model(**inputs).logits.sum().backward()
        optimizer.step()
    elif change == "data":
        model.streams[0].projectors.own["1"].weight.data.mul_(2)
    elif change == "config":
        model.config.audio_config = {**model.config.audio_config, "positions": "zero"}
    else:
        with adapted.disable_adapter(), pytest.raises(PalError, match="another model"):
            model(inputs["input_ids"], audio_memory=memory)
        return
    with torch.no_grad(), pytest.raises(PalError, match="another model"):
        model(inputs["input_ids"], audio_memory=memory)


def test_encoding_in_training_mode_has_no_dropout_and_leaves_modes_alone() -> None:
    model, _, inputs = prompt("pal", encoder=NOISY)
    memory = encoded(model, inputs)
    model.train()
    model.language_model.eval()
    again = encoded(model, inputs)
    assert torch.equal(memory.keys[0][1], again.keys[0][1])
    answers = [model.generate(**inputs, max_new_tokens=4, do_sample=False) for _ in range(2)]
    assert torch.equal(*answers)
    assert model.training
    assert model.encoders.training
    assert not model.language_model.training


def bare_llm(family: str, **fields: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        CONFIG_MAPPING[family](vocab_size=64, pad_token_id=0, bos_token_id=None, eos_token_id=1, **fields)
    ).eval()


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def around(llm: Any, arm: str) -> PalForConditionalGeneration:
    audio = preset(arm, TINY_ENCODER)
    return PalForConditionalGeneration(PalConfig(llm.config, audio, 64, 65), llm).eval()


@pytest.mark.parametrize("family", ["bloom", "gptj"])
def test_llms_outside_the_attention_interface_keep_their_causality(family: str) -> None:
    """They add whatever mask they get to their scores, so our mask must not reach them."""
    fields = (
        {"hidden_size": 32, "n_layer": 2, "n_head": 4}
        if family == "bloom"
        else {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    )
    llm = bare_llm(family, **fields)
    ids = torch.randint(2, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        bare = llm(ids, attention_mask=mask).logits
        assert torch.equal(around(llm, "plits")(ids, attention_mask=mask).logits, bare)
    with pytest.raises(UnsupportedLlmError, match=family):
        around(bare_llm(family, **fields), "lal")


def test_a_family_that_changes_values_after_its_cache_is_refused() -> None:
    llm = bare_llm("diffllama", **SIZES)
    with pytest.raises(UnsupportedLlmError, match=r"diffllama: .*attention of layer 0"):
        around(llm, "lal")


def test_a_family_without_sdpa_keeps_its_own_kernel() -> None:
    """GPT-OSS has attention sinks, which SDPA does not know."""
    llm = bare_llm("gpt_oss", **SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=6)
    perturb(llm)
    ids = torch.randint(2, 60, (1, 9))
    with torch.no_grad():
        bare = llm(ids).logits
        model = around(llm, "lal")
        torch.testing.assert_close(model(ids).logits, bare)
    with pytest.raises(PalError, match="eager"):
        model.set_attn_implementation("sdpa")


def test_a_prompt_fed_in_pieces_has_its_positions() -> None:
    model, processor = tiny_model("llama", "pal")
    inputs = batch(processor, [message(CLIP), message(noise(0.9), CLIP, system=None)])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        whole = model(**inputs).logits
        attached = model.attach(encoded(model, inputs), ids, mask)
        cache, pieces = None, []
        for start in range(0, ids.shape[1], 5):
            end = min(start + 5, ids.shape[1])
            outputs = model(
                ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, audio_memory=attached, use_cache=True
            )
            cache = outputs.past_key_values
            pieces.append(outputs.logits)
        shown = mask.bool()
        torch.testing.assert_close(torch.cat(pieces, 1)[shown], whole[shown], rtol=1e-5, atol=2e-5)


def test_a_cache_remembers_its_audio() -> None:
    """transformers' usual loop: the second call gives the next token and the cache, nothing else."""
    model, _, inputs = prompt()
    with torch.no_grad():
        outputs = model(**inputs, use_cache=True)
        token = outputs.logits[:, -1:].argmax(-1)
        mask = torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.int64)
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], token], 1), "attention_mask": mask}
        expected = model(**longer).logits[:, -1]
        for options in ({}, {"attention_mask": mask}):
            step = model(token, past_key_values=model(**inputs, use_cache=True).past_key_values, **options)
            torch.testing.assert_close(step.logits[:, -1], expected, rtol=1e-5, atol=2e-5)


def test_a_cache_of_generate_serves_a_second_turn_and_refuses_a_lost_clip() -> None:
    model, processor, inputs = prompt()
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    first = model.generate(**inputs, **options, return_dict_in_generate=True)
    tail = processor("and now?", add_special_tokens=False)["input_ids"]
    longer = torch.cat([first.sequences, tail], 1)
    expected = model.generate(
        longer, **options, input_features=inputs["input_features"], audio_num_samples=inputs["audio_num_samples"]
    )
    assert torch.equal(model.generate(longer, past_key_values=first.past_key_values, **options), expected)
    again = model.generate(**inputs, **options, return_dict_in_generate=True)
    with torch.no_grad(), pytest.raises(PalError, match="new clip"):
        model(torch.tensor([[5, model.config.audio_token_id, 5]]), past_key_values=again.past_key_values)


def test_an_attachment_belongs_to_its_prompt() -> None:
    model, processor, inputs = prompt()
    attached = model.attach(encoded(model, inputs), inputs["input_ids"])
    for other in (
        batch(processor, [message(CLIP, CLIP)]),
        batch(processor, [message(CLIP, question="a bell")]),
        batch(processor, [message()]),
    ):
        with pytest.raises(PalError, match="another prompt"):
            model(other["input_ids"], audio_memory=attached)
        with pytest.raises(PalError, match="another prompt"):
            model.generate(other["input_ids"], audio_memory=attached, max_new_tokens=1)
    with torch.no_grad():
        cache = model(inputs["input_ids"], audio_memory=attached, use_cache=True).past_key_values
    with pytest.raises(PalError, match="new clip"):
        model(torch.tensor([[model.config.audio_token_id]]), audio_memory=attached, past_key_values=cache)


def test_callers_positions_and_masks_must_agree_with_the_clips() -> None:
    model, _, inputs = prompt("lal")
    wrong = torch.arange(inputs["input_ids"].shape[1])[None]
    with pytest.raises(PalError, match="position_ids"):
        model(**inputs, position_ids=wrong)
    with torch.no_grad():
        right = model.attach(encoded(model, inputs), inputs["input_ids"]).placement.position_ids_BL
        model(**inputs, position_ids=right)
    mask = inputs["attention_mask"].clone()
    mask[inputs["input_ids"] == model.config.audio_token_id] = 0
    with pytest.raises(PalError, match="attention_mask hides"):
        model(**{**inputs, "attention_mask": mask})


def test_audio_beside_embeddings_and_slots_without_audio_are_refused() -> None:
    model, processor, inputs = prompt()
    embeddings = torch.randn(1, 4, 32)
    with pytest.raises(PalError, match="input_ids"):
        model(inputs_embeds=embeddings, input_features=inputs["input_features"], audio_num_samples=inputs["audio_num_samples"])
    with pytest.raises(PalError, match="audio slots but no audio"):
        model(**processor("a <|audio_slot|> b"))


def test_labels_never_ask_for_markers() -> None:
    model, _, inputs = prompt()
    with torch.no_grad():
        loss = model(**inputs, labels=inputs["input_ids"].clone()).loss
    assert torch.isfinite(loss)


def test_fields_of_an_inline_llm_are_known() -> None:
    fields = {"model_type": "llama", "tokenizer": {"vocab_size": 300}, "num_hidden_layers": 1}
    for wrong, words in (
        ({"hidden_sise": 32}, "did you mean 'hidden_size'"),
        ({"hidden_size": 32, "num_attention_heads": 5}, "model.llm"),
        ({"hidden_size": 32, "num_hidden_layers": 0}, "num_hidden_layers must be 1 at least, got 0"),
        ({"hidden_size": 32, "num_attention_heads": 0}, "model.llm: llama cannot be built"),
        ({"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 4}, "2 is no multiple of num_key_value_heads 4$"),
        ({"model_type": "qwen2", "hidden_size": 32, "num_attention_heads": 2}, "num_key_value_heads 32, qwen2's own number"),
    ):
        with pytest.raises(PalError, match=words):
            build_model(ModelSpec(llm={**fields, **wrong}, preset="lal", encoder=TINY_ENCODER))


@pytest.mark.parametrize("size", [10, 260, 0, -1, 300.5, "many", True, None])
def test_a_tokenizer_too_small_for_all_bytes_is_refused(size: Any) -> None:
    """It gave 261 entries without a word."""
    spec = ModelSpec(llm={"model_type": "llama", "tokenizer": {"vocab_size": size}}, encoder=TINY_ENCODER, preset="lal")
    for refuse in (check_spec, outline_config, build_model):
        with pytest.raises(PalError, match=r"^model.llm: tokenizer: vocab_size must be a whole number of 261 at least .*got "):
            refuse(spec)


def test_the_smallest_tokenizer_is_as_large_as_it_was_asked_to_be() -> None:
    assert len(train_tokenizer(["a bell"], 261)) == 261
    with pytest.raises(PalError, match="got 260"):
        train_tokenizer(["a bell"], 260)


def test_a_part_without_its_type_is_said_plainly() -> None:
    llm = {"model_type": "llama", "tokenizer": {"vocab_size": 300}, "hidden_size": 32, "num_attention_heads": 2}
    with pytest.raises(PalError, match=r"streams\.0\.connector: .*say its type beside these settings$"):
        build_model(ModelSpec(llm=llm, preset="lal", encoder=TINY_ENCODER, connector={"stride": 4}))


def test_the_embedding_can_grow() -> None:
    model, _, inputs = prompt()
    model.resize_token_embeddings(310)
    assert model.config.get_text_config().vocab_size == 310
    with torch.no_grad():
        assert model(**inputs).logits.shape[-1] == 310


def test_an_assistant_model_is_refused() -> None:
    model, _, inputs = prompt()
    with pytest.raises(PalError, match="assistant_model"):
        model.generate(**inputs, assistant_model=model.language_model, max_new_tokens=2)


def test_parts_of_different_dtypes_work_together() -> None:
    for part in ("language_model", "encoders", "streams"):
        model, _, inputs = prompt()
        with torch.no_grad():
            exact = model(**inputs).logits
            getattr(model, part).to(torch.bfloat16)
            low = model(**inputs).logits.float()
        assert (low - exact).pow(2).mean().sqrt() < 0.06 * exact.std()
        model(**inputs).logits.float().sum().backward()


def test_clips_and_prompts_that_a_memory_has_not_are_named() -> None:
    model, _, inputs = prompt()
    memory = encoded(model, inputs)
    for number in (1, -1):
        with pytest.raises(PalError, match=f"select: clip {number} is not among the memory's 1"):
            memory.select(torch.tensor([0, number]))
    with pytest.raises(PalError, match="share: 0 prompts"):
        memory.share(0)


@pytest.mark.parametrize("clips", [(CLIP,), ()], ids=["heard", "text"])
def test_an_answer_past_learned_positions_is_one_line(clips: Any) -> None:
    model, processor = tiny_model("gpt2", "pal", llm={"max_position_embeddings": 64}, positions="zero")
    inputs = batch(processor, [message(*clips)])
    assert inputs["input_ids"].shape[1] < 64
    for decode in (model.generate, partial(greedy, model)):
        with pytest.raises(PalError, match="the text reaches position 64, but the LLM has 64, counted from 0"):
            decode(**inputs, max_new_tokens=64, eos_token_id=[299])


def test_a_mask_of_another_shape_is_named() -> None:
    model, _, inputs = prompt()
    inputs["attention_mask"] = inputs["attention_mask"][:, 1:]
    for call in (model, lambda **given: model.generate(**given, max_new_tokens=1)):
        with torch.no_grad(), pytest.raises(PalError, match=r"attention_mask has shape \[1, \d+\], input_ids \[1, \d+\]"):
            call(**inputs)


def test_text_that_is_no_unicode_is_named() -> None:
    _, processor, _ = prompt()
    with pytest.raises(PalError, match="no Unicode text at character"):
        batch(processor, [message(CLIP, question=b"what\xff?".decode(errors="surrogateescape"))])


def test_a_memory_moves_between_devices_only() -> None:
    model, _, inputs = prompt()
    memory = encoded(model, inputs)
    assert memory.to("cpu").num_bytes == memory.num_bytes
    with pytest.raises(PalError, match="device"):
        memory.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "content"), (3, "content"), ([{"type": "text"}], "`text`"), ([3], "part"), ([{"type": "video"}], "'video'")],
)
def test_content_that_is_not_understood(content: Any, words: str) -> None:
    _, processor = tiny_model("llama", "lal")
    with pytest.raises(PalError, match=words):
        processor.apply_chat_template([{"role": "user", "content": content}])


def test_odd_texts_and_arrays() -> None:
    model, processor = tiny_model("llama", "pal")
    for conversation in (None, []):
        with pytest.raises(PalError, match="message"):
            processor.apply_chat_template(conversation)
    with pytest.raises(PalError, match="text"):
        processor([])
    assert processor("").input_ids.dtype == torch.int64
    for rate in (RATE_HZ, np.int64(RATE_HZ), 16_000.0):
        inputs = processor("<|audio|> what?", (CLIP, rate))
        assert inputs["audio_num_samples"].tolist() == [len(CLIP)]
    parts = [{"type": "text", "text": "<|aud"}, {"type": "text", "text": "io|>"}]
    assert model.config.audio_token_id not in processor.apply_chat_template([{"role": "user", "content": parts}])["input_ids"]
    with pytest.raises(PalError, match="one marker for each"):
        processor.apply_chat_template(message(CLIP), chat_template="nothing", sampling_rate=RATE_HZ)
