"""Many clips and many turns: a new clip behind a kept text cache equals recomputation."""

from typing import Any

import pytest
import torch

from pal_audio.errors import PalError
from pal_audio.integration.memory import AudioMemory
from tests.model.test_invariants import clip_tokens
from tests.reference import reference_logits
from tests.tiny import FAMILIES, RATE_HZ, batch, message, noise, tiny_model

CLIPS = [noise(0.4, 1), noise(1.3, 2), noise(0.7, 3), noise(0.3, 4)]
GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
ARMS = ("plits", "lal", "pal", "flamingo", "flamingo-last")
SOME = ("llama", "qwen3", "gemma3_text")
MATRIX = [(family, arm, positions) for family in FAMILIES for arm in ("plits", "lal", "pal") for positions in ("span", "zero")]
MATRIX += [(family, "flamingo", "span") for family in FAMILIES] + [(family, "flamingo", "zero") for family in SOME]
MATRIX += [(family, "flamingo-last", positions) for family in SOME for positions in ("span", "zero")]


def made(family: str, arm: str, **options: Any) -> Any:
    """A tiny model; "flamingo-last" is Flamingo blocks in which text hears the last clip before it alone."""
    if arm == "flamingo-last":
        arm, options = "flamingo", options | {"flamingo": {"layers": "all", "attends": "last"}}
    return tiny_model(family, arm, **options)


def features(processor: Any, *clips: Any) -> dict[str, Any]:
    return processor.collate_clips([processor.clip(clip, RATE_HZ) for clip in clips])


def tail(processor: Any, text: str, *clips: Any) -> Any:
    return processor(text, list(clips), sampling_rate=RATE_HZ, add_special_tokens=False)


def check_sixteen_clips(model: Any, processor: Any) -> None:
    """In one message, they equal the eager reference."""
    clips = [noise(0.1 + 0.07 * number, number) for number in range(16)]
    inputs = batch(processor, [message(*clips)])
    expected = reference_logits(model, inputs["input_ids"][0].tolist(), clip_tokens(model, processor, clips))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[0], expected)


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ARMS)
def test_sixteen_clips_in_a_message_equal_the_reference(arm: str, positions: str) -> None:
    check_sixteen_clips(*made("llama", arm, positions=positions))


def check_turns(model: Any, processor: Any) -> None:
    """Four turns over one cache: a clip, two clips, none, a clip; logits of every turn and greedy answers."""
    turns = [
        ("<|audio|> what is it?", CLIPS[:1]),
        ("and <|audio|> or <|audio|>?", CLIPS[1:3]),
        ("a bell", []),
        ("<|audio|>", CLIPS[3:]),
    ]
    ids, heard, cache = torch.zeros(1, 0, dtype=torch.int64), [], None
    with torch.no_grad():
        for text, clips in turns:
            new = tail(processor, text, *clips)
            ids, heard = torch.cat([ids, new.pop("input_ids")], 1), heard + clips
            new.pop("attention_mask")
            fresh = model(ids, **features(processor, *heard)).logits
            start = 0 if cache is None else cache.get_seq_length()
            outputs = model(ids[:, start:], past_key_values=cache, use_cache=True, **new)
            cache = outputs.past_key_values
            torch.testing.assert_close(outputs.logits, fresh[:, start:], rtol=1e-5, atol=2e-5)
            answer = model.generate(ids, **GREEDY, **features(processor, *heard))
            ids = answer[:, :-1]
            step = model(ids[:, cache.get_seq_length() :], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
    assert cache.pal_audio.clips.num_clips == len(heard)


@pytest.mark.parametrize(("family", "arm", "positions"), MATRIX)
def test_a_new_clip_in_a_later_turn_equals_recomputation(family: str, arm: str, positions: str) -> None:
    check_turns(*made(family, arm, positions=positions))


@pytest.mark.parametrize(("family", "arm", "positions"), MATRIX)
def test_generate_goes_on_with_a_new_clip(family: str, arm: str, positions: str) -> None:
    """New features alone beside the cache, or a memory of all clips: both equal generating from the start."""
    model, processor = made(family, arm, positions=positions)
    first = batch(processor, [message(CLIPS[1])])
    new = tail(processor, "and <|audio|> this?", CLIPS[2])
    both = features(processor, CLIPS[1], CLIPS[2])
    for beside in (features(processor, CLIPS[2]), {"audio_memory": model.encode_audio(**both)}):
        kept = model.generate(**first, **GREEDY, return_dict_in_generate=True)
        longer = torch.cat([kept.sequences, new["input_ids"]], 1)
        expected = model.generate(longer, **both, **GREEDY)
        again = model.generate(longer, past_key_values=kept.past_key_values, **beside, **GREEDY, return_dict_in_generate=True)
        assert torch.equal(again.sequences, expected)
        assert again.past_key_values.pal_audio.clips.num_clips == 2


@pytest.mark.parametrize("positions", ["span", "zero"])
@pytest.mark.parametrize("arm", ARMS)
def test_rows_that_get_none_one_and_two_new_clips(arm: str, positions: str) -> None:
    """A left-padded batch whose second turn is left-padded too."""
    model, processor = made("llama", arm, positions=positions)
    old = [[CLIPS[1]], [], [CLIPS[0], CLIPS[2]], []]
    new = [[], [CLIPS[3], CLIPS[0]], [CLIPS[1]], []]
    first = batch(processor, [message(*clips) for clips in old])
    texts = ["a bell", "<|audio|> or <|audio|>?", "and <|audio|> what sound?", "why?"]
    second = processor(texts, [clip for clips in new for clip in clips], sampling_rate=RATE_HZ, add_special_tokens=False)
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        rows = model(**{**second, "attention_mask": mask}, past_key_values=cache).logits
        for row, clips in enumerate(zip(old, new, strict=True)):
            parts = [item["input_ids"][row][item["attention_mask"][row].bool()] for item in (first, second)]
            heard = clips[0] + clips[1]
            alone = model(torch.cat(parts)[None], **(features(processor, *heard) if heard else {})).logits[0, -len(parts[1]) :]
            torch.testing.assert_close(rows[row, -len(parts[1]) :], alone, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("arm", ARMS)
def test_a_first_clip_behind_text_alone_and_beams_over_two_clips(arm: str) -> None:
    model, processor = made("llama", arm)
    text = processor("a bell, what sound", add_special_tokens=False)["input_ids"]
    new = tail(processor, "<|audio|> is this?", CLIPS[0])
    whole = torch.cat([text, new["input_ids"]], 1)
    heard = features(processor, CLIPS[0])
    with torch.no_grad():
        cache = model(text, use_cache=True).past_key_values
        outputs = model(new["input_ids"], past_key_values=cache, **heard)
        torch.testing.assert_close(outputs.logits, model(whole, **heard).logits[:, text.shape[1] :], rtol=1e-5, atol=2e-5)
    third = tail(processor, "and <|audio|>", CLIPS[2])
    longer = torch.cat([whole, third["input_ids"]], 1)
    both = features(processor, CLIPS[0], CLIPS[2])
    options = {**GREEDY, "num_beams": 2, "num_return_sequences": 2}
    assert torch.equal(model.generate(longer, **both, **options), model.generate(longer, **both, **options, use_cache=False))


def test_several_streams_of_a_layer_keep_their_order() -> None:
    from tests.model.test_streams import two_encoders

    model, processor = two_encoders()
    first, new = batch(processor, [message(CLIPS[0])]), tail(processor, "or <|audio|> this?", CLIPS[1])
    ids = torch.cat([first["input_ids"], new["input_ids"]], 1)
    with torch.no_grad():
        cache = model(**first, use_cache=True).past_key_values
        new.pop("attention_mask")
        kept = model(**new, past_key_values=cache).logits
        fresh = model(ids, **features(processor, CLIPS[0], CLIPS[1])).logits
    torch.testing.assert_close(kept, fresh[:, -kept.shape[1] :], rtol=1e-5, atol=2e-5)


def test_a_stream_that_grows_under_a_kept_cache() -> None:
    """`zero` with LAL alone: text goes on and hears more; elsewhere the cached text would have to move."""
    sound = noise(2.0, 6)
    options = {"connector": {"type": "mlp", "stride": 5}}
    for arm, positions in (("lal", "zero"), ("lal", "span"), ("plits", "zero")):
        model, processor = tiny_model("llama", arm, positions=positions, **options)
        memory = model.encode_audio(**features(processor, sound[:RATE_HZ]))
        longer = model.append_audio(memory, **features(processor, sound[RATE_HZ:]))
        ids = batch(processor, [message(sound[:RATE_HZ])])["input_ids"]
        more = processor("and now?", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            cache = model(ids, audio_memory=memory, use_cache=True).past_key_values
            if (arm, positions) == ("lal", "zero"):
                deaf = model(more, past_key_values=model(ids, audio_memory=memory, use_cache=True).past_key_values).logits
                grown = model(more, past_key_values=cache, audio_memory=longer)
                assert (grown.logits - deaf).abs().max() > 1e-4
                assert grown.past_key_values.pal_audio.clips.spans_C.tolist() == longer.clips.spans_C.tolist()
            else:
                with pytest.raises(PalError, match=r"cached text would move|1 audio slots|audio slots but the connector"):
                    model(more, past_key_values=cache, audio_memory=longer)


def test_what_would_be_wrong_is_refused() -> None:
    model, processor = tiny_model("llama", "pal")
    first, new = batch(processor, [message(CLIPS[0])]), tail(processor, "and <|audio|>?", CLIPS[2])
    ids = new["input_ids"]

    def kept() -> Any:
        return model(**first, use_cache=True).past_key_values

    sound = features(processor, CLIPS[2])
    with torch.no_grad():
        with pytest.raises(PalError, match="1 new audio markers behind the cache but 3 clips"):
            model(ids, past_key_values=kept(), **features(processor, CLIPS[2], CLIPS[2], CLIPS[2]))
        with pytest.raises(PalError, match=r"clip 1 .*audio slots but the connector"):
            model(
                ids[:, [0, 1, 2, 3]].masked_fill(ids[:, :4] == model.config.audio_slot_token_id, 5),
                past_key_values=kept(),
                **sound,
            )
        with pytest.raises(PalError, match="holds 1 rows, the text 2"):
            model(
                ids.expand(2, -1),
                past_key_values=kept(),
                audio_memory=model.encode_audio(**features(processor, CLIPS[2], CLIPS[2])),
            )
        mask = torch.ones(1, first["input_ids"].shape[1] + ids.shape[1], dtype=torch.int64)
        mask[0, 0] = 0
        with pytest.raises(PalError, match="its mask is another"):
            model(ids, past_key_values=kept(), attention_mask=mask, **sound)
        other, _ = tiny_model("llama", "pal", seed=1)
        with pytest.raises(PalError, match="another model"):
            model(ids, past_key_values=kept(), audio_memory=other.encode_audio(**sound))
        again = torch.cat([first["input_ids"] + 1, ids], 1)
        with pytest.raises(PalError, match="another prompt"):
            model.generate(again, past_key_values=kept(), max_new_tokens=1, **sound)
        cache = kept()
    with pytest.raises(PalError, match="no_grad"):
        model(ids, past_key_values=cache, **sound)
    live = model(**first, use_cache=True).past_key_values
    with torch.no_grad(), pytest.raises(PalError, match="gradients were on"):
        model(ids, past_key_values=live, **sound)
    short, processor = tiny_model("qwen2", "lal", llm={"max_position_embeddings": 40}, connector={"type": "mlp", "stride": 1})
    ids = tail(processor, "<|audio|>", CLIPS[1])["input_ids"]
    with torch.no_grad():
        cache = short(ids[:, :1], use_cache=True, **features(processor, CLIPS[0])).past_key_values
        with pytest.raises(PalError, match="zero"):
            short(ids, past_key_values=cache, audio_memory=short.encode_audio(**features(processor, CLIPS[1])))


def test_a_memory_of_all_turns_is_the_concatenation() -> None:
    model, processor = tiny_model("qwen3", "pal")
    parts = [model.encode_audio(**features(processor, clip)) for clip in CLIPS[:2]]
    inputs = batch(processor, [message(*CLIPS[:2])])
    with torch.no_grad():
        joined = model(inputs["input_ids"], audio_memory=AudioMemory.concatenate(parts)).logits
        torch.testing.assert_close(joined, model(**inputs).logits)
