"""Streams beyond the presets: several encoders, encoder layers, an hour of sound, low precision, training by others."""

from typing import Any

import numpy as np
import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.model import PalConfig, PalForConditionalGeneration, PalProcessor
from pal_audio.model.tokenizer import train_tokenizer
from tests.model.test_invariants import clip_tokens, valid_logits
from tests.reference import reference_logits
from tests.tiny import TINY_ENCODER, batch, llm_config, message, noise, perturb, tiny_model, tokenizer_texts

CLIPS = [noise(0.4, 1), noise(1.3, 2)]


def two_encoders() -> tuple[PalForConditionalGeneration, PalProcessor]:
    """Two encoders of different rates: one by PLITS, one by LAL twice, on different layers, with different token rates."""
    torch.manual_seed(0)
    audio = {
        "encoders": {"ear": TINY_ENCODER, "wide": {**TINY_ENCODER, "sampling_rate_hz": 24_000, "hidden_size": 8}},
        "streams": [
            {"encoder": "ear", "connector": {"type": "mlp", "stride": 8}, "integration": {"type": "plits"}},
            {"encoder": "wide", "connector": {"type": "mlp", "stride": 4}, "integration": {"type": "lal", "layers": "from:1"}},
            {"encoder": "wide", "connector": {"type": "qformer", "queries": 3, "num_heads": 2},
             "integration": {"type": "lal", "layers": [0, 2]}},
            {"encoder": "ear", "connector": {"type": "pool", "num_tokens": 2}, "integration": {"type": "plits"}},
        ],
    }  # fmt: skip
    processor = PalProcessor(train_tokenizer(tokenizer_texts(), 300), audio)
    text_config = llm_config("llama", len(processor.tokenizer))
    model = PalForConditionalGeneration(PalConfig(text_config, audio, processor.audio_token_id, processor.audio_slot_token_id))
    perturb(model)
    return model.eval(), processor


def test_several_encoders_and_streams_equal_the_reference() -> None:
    model, processor = two_encoders()
    conversations = [(message(*CLIPS), CLIPS), (message(CLIPS[1], system=None), [CLIPS[1]]), (message(), [])]
    inputs = batch(processor, [conversation for conversation, _ in conversations])
    assert set(inputs["input_features"]) == {"ear", "wide"}
    with torch.no_grad():
        rows = valid_logits(model(**inputs), inputs)
    for row, (conversation, clips) in zip(rows, conversations, strict=True):
        ids = batch(processor, [conversation])["input_ids"][0].tolist()
        expected = reference_logits(model, ids, clip_tokens(model, processor, clips) if clips else [[] for _ in model.streams])
        torch.testing.assert_close(row, expected)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False))
    with pytest.raises(PalError, match="by encoder name"):
        model(inputs["input_ids"], input_features=torch.zeros(1, 1), audio_num_samples=torch.ones(1))


def test_every_llm_layer_hears_its_own_encoder_layer() -> None:
    encoder = {**TINY_ENCODER, "num_layers": 2, "encoder_layers": "per_llm_layer"}
    model, processor = tiny_model("llama", "lal", encoder=encoder)
    inputs = batch(processor, [message(CLIPS[1])])
    live = model.encode(inputs["input_features"], inputs["audio_num_samples"])
    frames = model.encoders["audio"](inputs["input_features"], inputs["audio_num_samples"])
    stream = model.streams[0]
    for layer, source in enumerate([0, 0, 1, 1]):
        expected = stream.projectors(layer, stream.connector(frames.layers[source], frames.lengths)[0])
        torch.testing.assert_close(live.inputs[0](layer), expected)
    with pytest.raises(PalError, match="needs `type: lal`"):
        tiny_model("llama", "plits", encoder=encoder)


@pytest.mark.parametrize("layers", [[-1, 0], [1]])
def test_chosen_encoder_layers_feed_the_connector(layers: list[int]) -> None:
    model, processor = tiny_model("llama", "lal", encoder={**TINY_ENCODER, "encoder_layers": layers})
    inputs = batch(processor, [message(CLIPS[0])])
    with torch.no_grad():
        model(**inputs)
    assert model.streams[0].connector.frame_size == 12 * len(layers)


def test_an_hour_of_sound_under_zero() -> None:
    """3,600 windows of a second: bounded passes, one memory, and the last minute still matters."""
    model, processor = tiny_model("llama", "pal", positions="zero", connector={"type": "pool", "tokens_per_s": 1.0})
    rng = np.random.default_rng(0)
    hour = rng.standard_normal(3600 * 16_000, dtype=np.float32) * 0.1
    seen = []
    handle = model.encoders["audio"].project.register_forward_hook(lambda *call: seen.append(call[2].shape[0]))
    inputs = batch(processor, [message(hour)])
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert max(seen) <= 16
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    assert memory.clips.num_keys_SC.tolist() == [[3600]]
    assert torch.equal(first, model.generate(inputs["input_ids"], audio_memory=memory, max_new_tokens=3, do_sample=False))
    with torch.no_grad():
        logits = model(inputs["input_ids"], audio_memory=memory).logits
        for layer in memory.values[0].values():
            layer[:, :, 3540:] += 0.5
        assert (model(inputs["input_ids"], audio_memory=memory).logits - logits).abs().max() > 1e-4


# bfloat16 keeps 8 bits: 2^-8 a rounding, several roundings a layer. Seen: at most 0.02 of the logits' spread.
BF16_TOLERANCE = 0.06


@pytest.mark.parametrize("arm", ["plits", "lal", "pal"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text", "olmo2"])
def test_bfloat16(family: str, arm: str) -> None:
    """bf16 against float32, live against memory, batch against single: within a stated share of the logits' spread."""
    model, processor = tiny_model(family, arm, llm={"initializer_range": 0.1})
    conversations = [message(CLIPS[0]), message(CLIPS[1], CLIPS[0]), message()]
    inputs = batch(processor, conversations)
    with torch.no_grad():
        exact = torch.cat(valid_logits(model(**inputs), inputs))
        model.to(torch.bfloat16)
        model.prove_llm()
        low = torch.cat(valid_logits(model(**inputs), inputs)).float()
        alone = [model(**batch(processor, [conversation])).logits[0] for conversation in conversations]
    live = torch.cat(valid_logits(model(**inputs), inputs)).float()
    spread = exact.std()
    assert (low - exact).pow(2).mean().sqrt() < BF16_TOLERANCE * spread
    assert (torch.cat(alone).float() - low).pow(2).mean().sqrt() < BF16_TOLERANCE * spread
    assert (live - low).pow(2).mean().sqrt() < BF16_TOLERANCE * spread
    model.generate(**inputs, max_new_tokens=2)


def test_autocast_trains_and_agrees_with_float32() -> None:
    model, processor = tiny_model("llama", "pal", llm={"initializer_range": 0.1})
    inputs = batch(processor, [message(CLIPS[0])])
    exact = model(**inputs).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(**inputs).logits
    low.float().mean().backward()
    assert (low.float() - exact).pow(2).mean().sqrt() < BF16_TOLERANCE * exact.std()


def conversation_with_answer(clip: np.ndarray, answer: str) -> list[dict[str, Any]]:
    return [*message(clip), {"role": "assistant", "content": answer}]


def test_labels_cover_exactly_the_answers() -> None:
    _, processor = tiny_model("llama", "pal")
    turns = [
        *conversation_with_answer(CLIPS[0], "a bell"),
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "a dog"},
    ]
    inputs = batch(processor, [turns, conversation_with_answer(CLIPS[1], "a dog barks twice")], return_labels=True)
    decode = processor.tokenizer.decode
    texts = [decode(row[row != -100]) for row in inputs["labels"]]
    assert texts == ["a bell<|end|>a dog<|end|>", "a dog barks twice<|end|>"]
    same = inputs["labels"] == inputs["input_ids"]
    assert bool((same | (inputs["labels"] == -100)).all())


# Each in the manner of a family's own: roles and ends of turns, a think block that only the last turn keeps, trimmed content.
TEMPLATES = {
    "llama": "{{ '<s>' }}{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}",
    "chatml": "{% for m in messages %}<im>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<im>assistant\n{% endif %}",
    "qwen3": "{% for m in messages %}<im>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<im>assistant\n{% endif %}",
    "gemma": "{{ '<b>' }}{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_labels_under_templates_in_the_manner_of_families(template: str) -> None:
    _, processor = tiny_model("llama", "pal")
    turns = [
        *conversation_with_answer(CLIPS[0], "a bell"),
        {"role": "user", "content": "a bell?"},
        {"role": "assistant", "content": " k "},
    ]
    inputs = batch(processor, [turns], return_labels=True, chat_template=TEMPLATES[template])
    supervised = inputs["labels"][0] != -100
    starts = supervised & ~torch.nn.functional.pad(supervised[:-1], (1, 0))
    spans, decode = [], processor.tokenizer.decode
    for start in starts.nonzero()[:, 0].tolist():
        stretch = supervised[start:].int()
        length = int(stretch.argmin()) if bool((stretch == 0).any()) else len(stretch)
        spans.append(decode(inputs["input_ids"][0, start : start + length]))
    think = "<think>\n\n</think>\n\n" if template == "qwen3" else ""
    last = "k" if "trim" in TEMPLATES[template] else " k "
    assert spans == ["a bell<|end|>", f"{think}{last}<|end|>"]
    for bad, words in ((turns[2:], "begins cannot"), ([*turns[:2], {"role": "assistant", "content": ""}], "empty")):
        with pytest.raises(PalError, match=words):
            batch(processor, [bad], return_labels=True, chat_template=TEMPLATES[template])


def test_transformers_trainer_trains_it(tmp_path: Any) -> None:
    from transformers import Trainer, TrainingArguments

    model, processor = tiny_model("llama", "pal")
    data = [conversation_with_answer(noise(0.3 + 0.1 * index, index), "a bell") for index in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
        remove_unused_columns=False, use_cpu=True, save_strategy="no", disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=data, data_collator=lambda rows: dict(batch(processor, rows, return_labels=True))
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_a_loss_is_the_llms_own() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [conversation_with_answer(CLIPS[0], "a bell")], return_labels=True)
    with torch.no_grad():
        outputs = model(**inputs)
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
    torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(logits, labels))
