"""A PAL model as an answerer: the ranks are the training loss's, a batch is its items one by one, and silence is silence."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pal_audio.audio import AudioError
from pal_audio.data.encode import encode
from pal_audio.data.frame_cache import FrameCache
from pal_audio.data.importers.base import asked
from pal_audio.data.manifest import AudioPart, Example
from pal_audio.encoders.base import Frames
from pal_audio.errors import PalError
from pal_audio.evaluation.model_answerer import PAUSE_S, ModelAnswerer
from pal_audio.model import PalProcessor
from tests.tiny import RATE_HZ, TINY_ENCODER, noise, tiny_model

EAR = "audio"  # what presets call their one encoder
CHOICES = [["a bell", "a dog barks twice", "siren"], ["a", "how many"], ["a bell"]]


def examples(folder: Path) -> list[Example]:
    """Three questions about clips of different lengths, the last without sound."""
    made = []
    for number in range(3):
        path = folder / f"{number}.wav"
        soundfile.write(path, noise(0.4 + 0.9 * number, number), RATE_HZ)
        clips = [path] if number < 2 else []
        made.append(asked(str(number), clips, "what sound is this?" + " is it" * number, "a bell", "x"))
    return made


@pytest.mark.parametrize("arm", ["lal", "plits", "pal"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_rank_is_the_training_loss_of_the_choice(arm: str, family: str, tmp_path: Path) -> None:
    model, processor = tiny_model(family, arm)
    answerer, asked_about = ModelAnswerer(model, processor, "tiny"), examples(tmp_path)
    heard = [[answerer.hear([part]) for part in example.audio] for example in asked_about]
    scores = answerer.listen(heard).rank([example.prompt for example in asked_about], CHOICES)
    for example, choices, found in zip(asked_about, CHOICES, scores, strict=True):
        expected = [training_loss(model, processor, example, choice) for choice in choices]
        np.testing.assert_allclose(found, [-loss for loss in expected], atol=2e-5)


def training_loss(model: torch.nn.Module, processor: PalProcessor, example: Example, choice: str) -> float:
    """The loss of a training example whose answer is the choice: one full forward without a cache or a memory."""
    parts = [part.model_dump(exclude_none=True) for part in example.messages[0].parts]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": choice}]
    with torch.no_grad():
        return float(model(**processor.apply_chat_template(messages, return_labels=True)).loss)


@pytest.mark.parametrize("arm", ["lal", "plits", "pal"])
def test_a_batch_is_its_items_one_by_one(arm: str, tmp_path: Path) -> None:
    answerer = ModelAnswerer(*tiny_model("llama", arm), "tiny")
    asked_about = examples(tmp_path)
    heard = [[answerer.hear([part]) for part in example.audio] for example in asked_about]
    prompts = [example.prompt for example in asked_about]
    together = answerer.listen(heard)
    answers, scores = together.generate(prompts, 8), together.rank(prompts, CHOICES)
    for number in range(3):
        alone = answerer.listen([heard[number]])
        assert alone.generate([prompts[number]], 8) == [answers[number]]
        np.testing.assert_allclose(alone.rank([prompts[number]], [CHOICES[number]])[0], scores[number], atol=2e-5)


def test_the_rendered_prompt_is_what_is_tokenised(tmp_path: Path) -> None:
    answerer = ModelAnswerer(*tiny_model("llama", "lal"), "tiny")
    example = examples(tmp_path)[0]
    text = answerer.rendered(example.prompt)
    assert text == "<|user|><|audio|>what sound is this?<|end|><|assistant|>"
    batch = answerer.listen([[answerer.hear(example.audio)]])
    assert answerer.processor.tokenizer.decode(batch._inputs([example.prompt])["input_ids"][0]) == text


def test_two_questions_about_a_clip_share_it(tmp_path: Path) -> None:
    answerer = ModelAnswerer(*tiny_model("llama", "pal"), "tiny")
    first, second, _ = examples(tmp_path)
    clips = [answerer.hear([part]) for part in (*first.audio, *second.audio)]
    batch = answerer.listen([[clips[0]], [clips[1]], [clips[0]]])
    prompts = [first.prompt, second.prompt, first.prompt]
    scores = batch.rank(prompts, [CHOICES[0]] * 3)
    assert batch.memory is not None
    assert torch.equal(batch.memory.clips.spans_C[0], batch.memory.clips.spans_C[2])
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-6)
    np.testing.assert_allclose(answerer.listen([[clips[0]]]).rank(prompts[:1], CHOICES[:1])[0], scores[0], atol=2e-5)


def test_what_stands_in_for_a_clip_has_its_length(tmp_path: Path) -> None:
    answerer = ModelAnswerer(*tiny_model("llama", "pal"), "tiny")
    clip = answerer.hear(examples(tmp_path)[1].audio)
    silence, white = answerer.silence(clip), answerer.noise(clip, 3)
    assert silence.num_samples == white.num_samples == clip.num_samples
    front_end = answerer.processor.front_ends[EAR]
    samples = clip.num_samples[EAR]
    assert torch.equal(silence.features[EAR], front_end(np.zeros(samples, dtype=np.float32)))
    assert not torch.equal(white.features[EAR], silence.features[EAR])
    assert torch.equal(white.features[EAR], answerer.noise(clip, 3).features[EAR])
    assert not torch.equal(white.features[EAR], answerer.noise(clip, 4).features[EAR])


def test_a_joined_clip_is_its_parts_with_a_pause(tmp_path: Path) -> None:
    answerer = ModelAnswerer(*tiny_model("llama", "lal"), "tiny")
    first, second, _ = examples(tmp_path)
    joined = answerer.hear([*first.audio, *second.audio])
    waves = [soundfile.read(tmp_path / f"{number}.wav", dtype="float32")[0] for number in (0, 1)]
    whole = np.concatenate([waves[0], np.zeros(round(PAUSE_S * RATE_HZ), dtype=np.float32), waves[1]])
    assert joined.num_samples[EAR] == len(whole)
    assert torch.equal(joined.features[EAR], answerer.processor.front_ends[EAR](whole))


@pytest.mark.parametrize("arm", ["lal", "plits", "pal", "flamingo"])
def test_too_long_says_what_asking_would(arm: str, tmp_path: Path) -> None:
    """At the very position at which the model refuses a prompt with its clips."""
    model, processor = tiny_model("llama", arm)
    answerer, question = ModelAnswerer(model, processor, "tiny"), examples(tmp_path)[1]
    heard = [answerer.hear(question.audio)]
    batch = answerer.listen([heard])
    assert answerer.too_long(heard, question.prompt) == ""
    found = []
    for limit in range(4, 60):
        model.language_model.config.max_position_embeddings = limit
        try:
            batch.rank([question.prompt], [["a"]])
            refused = False
        except PalError:
            refused = True
        reason = answerer.too_long(heard, question.prompt)
        assert bool(reason) == refused, (limit, reason)
        found.append(refused)
    assert {True, False} == set(found)
    model.language_model.config.max_position_embeddings = 4
    assert "positions with its question" in answerer.too_long(heard, question.prompt)
    assert "shorten the clip or the question" in answerer.too_long(heard, question.prompt)
    assert answerer.too_long([], examples(tmp_path)[2].prompt) != ""


def test_a_clip_that_is_no_sound_is_an_audio_error(tmp_path: Path) -> None:
    answerer = ModelAnswerer(*tiny_model("llama", "lal"), "tiny")
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    for name in ("bad.wav", "gone.wav"):
        with pytest.raises(AudioError):
            answerer.hear([AudioPart(path=str(tmp_path / name))])


def test_the_fingerprint_sees_weights_and_words() -> None:
    model, processor = tiny_model("llama", "lal")
    before = ModelAnswerer(model, processor, "one place").fingerprint
    assert ModelAnswerer(model, processor, "another place").fingerprint == before
    model.config.text_config._name_or_path = "moved"
    assert ModelAnswerer(model, processor, "moved").fingerprint == before
    with torch.no_grad():
        next(model.language_model.parameters()).add_(1e-3)
    changed = ModelAnswerer(model, processor, "").fingerprint
    assert changed != before
    processor.tokenizer.chat_template += " "
    assert ModelAnswerer(model, processor, "").fingerprint != changed


def test_a_template_that_hides_where_an_answer_begins_cannot_rank(tmp_path: Path) -> None:
    model, processor = tiny_model("llama", "lal")
    processor.tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    answerer = ModelAnswerer(model, processor, "")
    example = examples(tmp_path)[0]
    batch = answerer.listen([[answerer.hear(example.audio)]])
    with pytest.raises(PalError, match="use --method generate"):
        batch.rank([example.prompt], [["a bell"]])


def test_cached_frames_give_the_answers_of_live_sound(tmp_path: Path) -> None:
    model, processor = tiny_model("llama", "pal", encoder={**TINY_ENCODER, "frozen": True})
    asked_about = examples(tmp_path)[:2]
    parts = [part for example in asked_about for part in example.audio]
    encode(parts, dict(model.encoders.items()), tmp_path / "frames", "float32")
    live = ModelAnswerer(model, processor, "tiny")
    cached = ModelAnswerer(model, processor, "tiny", FrameCache(tmp_path / "frames", model.encoders))
    prompts = [example.prompt for example in asked_about]
    scores = []
    for answerer in (live, cached):
        heard = [answerer.hear([part]) for part in parts]
        batch = answerer.listen([[clip] for clip in heard])
        silent = answerer.listen([[answerer.silence(clip)] for clip in heard])
        scores.append([*batch.rank(prompts, CHOICES[:2]), *silent.rank(prompts, CHOICES[:2])])
    for ours, theirs in zip(*scores, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert isinstance(cached.hear([parts[0]]).features[EAR], Frames)
    Path(parts[0].path).unlink()
    with pytest.raises(AudioError, match="no such file"):
        cached.hear([parts[0]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("arm", ["lal", "plits", "pal"])
def test_cuda_answers_as_the_cpu(arm: str, tmp_path: Path) -> None:
    model, processor = tiny_model("llama", arm)
    asked_about = [*examples(tmp_path), *examples(tmp_path)[:1]]
    prompts = [example.prompt for example in asked_about]
    found = []
    for device in ("cpu", "cuda"):
        answerer = ModelAnswerer(model.to(device), processor, "tiny")
        heard = [[answerer.hear([part]) for part in example.audio] for example in asked_about[:3]]
        batch = answerer.listen([*heard, heard[0]])  # a clip that two items ask about
        found.append((batch.generate(prompts, 8), batch.rank(prompts, [*CHOICES, CHOICES[0]])))
    assert found[0][0] == found[1][0]
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
