"""What must be refused: audio lost on the way, counts that do not match, foreign memories, families that are not proved."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pal_audio.errors import PalError
from pal_audio.integration.key_values import UnsupportedLlmError
from pal_audio.model import AudioConfig, preset
from tests.tiny import RATE_HZ, batch, message, noise, tiny_model

CLIP = noise(0.5)


def test_audio_that_does_not_reach_its_layers_is_an_error() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(CLIP)])
    model.language_model.set_attn_implementation("sdpa")  # behind the model's back
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"did not reach layers \[0, 1, 2, 3\]"):
        model(**inputs)
    with pytest.raises(RuntimeError, match="did not reach"):
        model.generate(**inputs, max_new_tokens=1)


def test_the_models_own_switch_keeps_audio_and_refuses_other_kernels() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(CLIP)])
    for kernel in ("eager", "sdpa", {"text_config": "eager"}):
        model.set_attn_implementation(kernel)
        with torch.no_grad():
            model(**inputs)
    with pytest.raises(PalError, match="flash_attention_2"):
        model.set_attn_implementation("flash_attention_2")


@pytest.mark.parametrize("arm", ["plits", "lal", "pal", "flamingo"])
def test_markers_and_clips_must_match(arm: str) -> None:
    model, processor = tiny_model("llama", arm)
    inputs = batch(processor, [message(CLIP), message(CLIP)])
    with torch.no_grad():
        memory = model.encode_audio(inputs["input_features"][:1], inputs["audio_num_samples"][:1])
        with pytest.raises(PalError, match=r"2 audio markers \(per row: \[1, 1\]\) but 1 clips"):
            model(inputs["input_ids"], audio_memory=memory)
        with pytest.raises(PalError, match="2 audio markers but no audio"):
            model(inputs["input_ids"])
    with pytest.raises(PalError, match=r"1 <\|audio\|> markers but 2 clips"):
        processor("<|audio|> what?", [CLIP, CLIP], sampling_rate=RATE_HZ)
    with pytest.raises(PalError, match="markers but no audio"):
        model.generate(inputs["input_ids"], max_new_tokens=1)


@pytest.mark.parametrize("arm", ["plits", "pal"])
def test_slots_and_tokens_must_match(arm: str) -> None:
    model, processor = tiny_model("llama", arm, connector={"type": "mlp", "stride": 4})
    inputs = batch(processor, [message(CLIP), message(noise(0.9))])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    ids = inputs["input_ids"].clone()
    slots = (ids[1] == model.config.audio_slot_token_id).nonzero()[:, 0]
    ids[1, slots[-1]] = 9
    with pytest.raises(
        PalError, match=rf"clip 1 \(row 1\): the text holds {len(slots) - 1} audio slots but the connector gave {len(slots)}"
    ):
        model(ids, audio_memory=memory)
    ids[1, slots[-1]] = model.config.audio_slot_token_id
    ids[1, -1] = model.config.audio_slot_token_id
    with pytest.raises(PalError, match="row 1 of 2: an audio slot does not follow its marker"):
        model(ids, audio_memory=memory)


def test_a_memory_of_another_model_or_older_weights_is_refused() -> None:
    model, processor = tiny_model("llama", "pal")
    other, _ = tiny_model("llama", "pal", seed=1)
    inputs = batch(processor, [message(CLIP)])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    with pytest.raises(PalError, match="made by another model"):
        other(inputs["input_ids"], audio_memory=memory)
    with torch.no_grad():
        model(inputs["input_ids"], audio_memory=memory)
        model.language_model.model.layers[1].self_attn.k_proj.weight[0, 0] += 0.5
    with pytest.raises(PalError, match="made by another model"):
        model(inputs["input_ids"], audio_memory=memory)


def test_features_and_memory_together_or_features_alone_are_refused() -> None:
    model, processor = tiny_model("llama", "lal")
    inputs = batch(processor, [message(CLIP)])
    memory = model.encode_audio(inputs["input_features"], inputs["audio_num_samples"])
    with pytest.raises(PalError, match="not both"):
        model(**inputs, audio_memory=memory)
    with pytest.raises(PalError, match="audio_num_samples"):
        model(inputs["input_ids"], input_features=inputs["input_features"])


def test_a_span_beyond_the_llms_context_names_zero() -> None:
    options: dict[str, Any] = {"llm": {"max_position_embeddings": 24}, "connector": {"type": "mlp", "stride": 1}}
    model, processor = tiny_model("qwen2", "lal", **options)
    for seconds, what in ((2.0, "24, about 1.0 s of sound.*or a model of `positions: zero`"), (0.9, "24; use `positions: zero`")):
        inputs = batch(processor, [message(noise(seconds), system=None, question="a")])
        with torch.no_grad(), pytest.raises(PalError, match=rf"trained on {what}"):
            model(**inputs)
    model, processor = tiny_model("qwen2", "lal", positions="zero", **options)
    with torch.no_grad():
        model(**batch(processor, [message(noise(2.0), system=None, question="a")]))


def test_reentrant_checkpointing_is_refused() -> None:
    model, _ = tiny_model("llama", "lal")
    with pytest.raises(PalError, match="use_reentrant"):
        model.gradient_checkpointing_enable({"use_reentrant": True})


class ScaledKeys(nn.Linear):
    """A key projection whose module does more than its parent's: rule and layer still agree, since it is called."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_the_proof_calls_modules_and_finds_a_path_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model("llama", "lal")
    attention = model.language_model.model.layers[2].self_attn
    attention.k_proj = ScaledKeys(32, 16, bias=False)
    model.prove_llm()
    # A family that scales keys after its projection is not reproduced, and said so by layer and name.
    forward = type(attention).forward

    def scaled(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(self, hidden_states * (3.0 if self.layer_idx == 2 else 1.0), *args, **kwargs)

    monkeypatch.setattr(type(attention), "forward", scaled)
    with pytest.raises(UnsupportedLlmError, match="llama: the keys of layer 2"):
        model.prove_llm()


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    from pal_audio.model import load

    model, processor = tiny_model("llama", "lal")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["marker"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PalError, match="lacks 1 weights of this model, the first is 'marker'"):
        load(tmp_path)
    with pytest.raises(PalError, match="no PAL model here"):
        load(tmp_path / "nothing")


def test_literal_markers_in_user_text_are_text() -> None:
    model, processor = tiny_model("llama", "pal")
    inputs = batch(processor, [message(CLIP, question="say <|audio|> and <|audio_slot|>")])
    assert int((inputs["input_ids"] == model.config.audio_token_id).sum()) == 1
    assert int((inputs["input_ids"] == model.config.audio_slot_token_id).sum()) == 3
    assert "say < |audio|> and < |audio_slot|>" in processor.tokenizer.decode(inputs["input_ids"][0])


def test_audio_ids_are_never_generated_and_do_not_disturb_penalties() -> None:
    model, processor = tiny_model("llama", "lal", llm={"vocab_size": 400})  # both audio ids inside the vocabulary
    with torch.no_grad():
        model.language_model.get_output_embeddings().weight[model.config.audio_token_id] = 50.0
    inputs = batch(processor, [message(CLIP)])
    for options in ({"do_sample": False}, {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}):
        answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, **options)[0, inputs["input_ids"].shape[1] :]
        assert model.config.audio_token_id not in answer.tolist()
    outside, processor = tiny_model("llama", "lal")  # both outside: penalties index logits by prompt ids
    outside.generate(**batch(processor, [message(CLIP)]), max_new_tokens=3, repetition_penalty=1.3)


def test_padding_is_inferred_where_no_mask_is_given() -> None:
    model, processor = tiny_model("llama", "pal")
    inputs = batch(processor, [message(CLIP), message(noise(0.9), CLIP, system=None, question="a")])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert not bool(inputs.pop("attention_mask").all())
    assert torch.equal(model.generate(**inputs, **options), expected)


def test_a_typo_in_generate_is_caught() -> None:
    model, processor = tiny_model("llama", "lal")
    with pytest.raises(ValueError, match="audio_memroy"):
        model.generate(**batch(processor, [message(CLIP)]), audio_memroy=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"streams": []}, "streams"),
        ({"positions": "sapn"}, "positions"),
        ({"position": "span"}, "position"),
        ({"streams": [{"encoder": "ear", "connector": {"type": "mlp"}, "integration": {"type": "lal"}}]}, "'ear'"),
        (
            {"streams": [{"encoder": "audio", "connector": {"type": "mlp"}, "integration": {"type": "lal", "layers": "form:2"}}]},
            "form:2",
        ),
        ({"streams": [{"encoder": "audio", "connector": {"type": "mpl"}, "integration": {"type": "lal"}}]}, "mpl"),
    ],
)
def test_configuration_faults_are_one_clear_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PalError, match=words) as caught:
        AudioConfig.parse({**preset("lal", {"type": "conv"}), **change})
    assert "\n" not in str(caught.value)


def test_layers_that_the_llm_does_not_have_are_refused() -> None:
    for layers in ([0, 4], [1, 1], "from:4"):
        with pytest.raises(PalError, match="distinct layers of the LLM's 4"):
            tiny_model("llama", "lal", lal={"layers": layers})


def test_arrays_need_a_rate_and_options_are_known() -> None:
    _, processor = tiny_model("llama", "lal")
    with pytest.raises(PalError, match="needs its rate"):
        processor("<|audio|>", np.zeros(100, dtype=np.float32))
    with pytest.raises(PalError, match="no option 'truncate'"):
        processor("a", truncate=True)
    with pytest.raises(PalError, match="truncation=True is not supported"):
        processor("a", truncation=True)
    with pytest.raises(PalError, match="over max_length 2"):
        processor("a dog barks twice", max_length=2)


def test_weights_that_were_moved_leave_nothing_behind() -> None:
    """What tells whether a memory is this model's keeps views of weights: of a model sent to the CPU its GPU would stay full."""
    model, _ = tiny_model("llama", "lal")
    before = model.audio_fingerprint()
    old = [StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()]
    model.to(torch.float64)
    assert all(storage.expired() for storage in old)
    assert model.audio_fingerprint() != before
