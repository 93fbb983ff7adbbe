"""What every encoder promises: lengths, batches, windows, layers, freezing."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.cases import CASES, join, noise
from pal_audio import encoders
from pal_audio.encoders import AudioEncoder
from pal_audio.errors import PalError

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' WavLM
WAVE_DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
WAVE_NO_DROPOUT = dict.fromkeys(WAVE_DROPOUTS, 0.0)
NO_DROPOUT: dict[str, dict[str, float]] = {"whisper": {}, "ast": {}}  # the other families differ from WAVE_NO_DROPOUT
NO_DROPOUT["clap"] = NO_DROPOUT["clap-fusion"] = {"hidden_dropout_prob": 0.0}
NO_DROPOUT["wav2vec2-conformer"] = WAVE_NO_DROPOUT | {"conformer_conv_dropout": 0.0}
every_encoder = pytest.mark.parametrize("name", CASES)


@functools.cache
def built(name: str) -> AudioEncoder:
    torch.manual_seed(0)
    encoder = encoders.build(encoders.parse(CASES[name])).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # as after training: not the identity
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.normal_(module.bias)
    return encoder


def encode(encoder: AudioEncoder, lengths: list[int], **options: int) -> encoders.Frames:
    front_end = encoder.config.front_end()
    features = join([front_end(noise(length, seed)) for seed, length in enumerate(lengths)])
    return encoder(features, torch.tensor(lengths), **options)


@every_encoder
@torch.no_grad()
def test_output_lengths_are_the_real_shapes(name: str) -> None:
    encoder = built(name)
    front_end = encoder.config.front_end()

    @settings(max_examples=12, deadline=None, derandomize=True, database=None)
    @given(st.integers(1, 3 * encoder.config.window_samples))
    def check(num_samples: int) -> None:
        features = front_end(noise(num_samples))
        assert features.dtype == torch.float32
        assert len(features) == -(-num_samples // encoder.config.window_samples)
        frames = encoder(features, torch.tensor([num_samples]))
        num_frames = encoder.config.output_lengths(num_samples)
        assert num_frames >= 1
        assert frames.lengths.tolist() == [num_frames]
        assert frames.lengths.dtype == torch.int64
        assert frames.layers[0].shape == (1, num_frames, encoder.config.frame_size)

    check()


@every_encoder
@given(st.integers(1, 5_000_000), st.integers(0, 100_000))
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_longer_clips_give_no_fewer_frames(name: str, num_samples: int, more: int) -> None:
    config = built(name).config
    window, most = config.window_samples, config.window_frames(config.window_samples)
    inside = min(num_samples, window)
    assert 1 <= config.window_frames(inside) <= config.window_frames(min(inside + more, window)) <= most
    assert config.output_lengths(num_samples) <= config.output_lengths(num_samples + window)
    assert sum(config.window_lengths(num_samples)) == num_samples


@every_encoder
@torch.no_grad()
def test_batch_equals_single(name: str) -> None:
    encoder = built(name)
    window = encoder.config.window_samples
    lengths = [window // 3, 1, 2 * window + 100, window, window // 2, window + 1]
    batch = encode(encoder, lengths)
    front_end = encoder.config.front_end()
    for clip, length in enumerate(lengths):
        single = encoder(front_end(noise(length, clip)), torch.tensor([length]))
        num_frames = int(batch.lengths[clip])
        torch.testing.assert_close(batch.layers[0][clip, :num_frames], single.layers[0][0], atol=1e-5, rtol=1e-5)
        assert (batch.layers[0][clip, num_frames:] == 0).all()


@every_encoder
@torch.no_grad()
def test_a_long_clip_is_its_windows_in_order(name: str) -> None:
    encoder = built(name)
    window = encoder.config.window_samples
    wav_S = noise(2 * window + window // 2)
    front_end = encoder.config.front_end()
    whole = encoder(front_end(wav_S), torch.tensor([len(wav_S)])).layers[0][0]
    parts = [wav_S[start : start + window] for start in range(0, len(wav_S), window)]
    alone = [encoder(front_end(part), torch.tensor([len(part)])).layers[0][0] for part in parts]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-5)


@every_encoder
@torch.no_grad()
def test_few_windows_at_a_time_change_nothing(name: str) -> None:
    encoder = built(name)
    lengths = [encoder.config.window_samples + 500, 300, 2 * encoder.config.window_samples]
    at_once, in_parts = encode(encoder, lengths), encode(encoder, lengths, max_windows=2)
    torch.testing.assert_close(at_once.layers[0], in_parts.layers[0], atol=1e-5, rtol=1e-5)


@every_encoder
@torch.no_grad()
def test_encoder_layers_are_picked_from_the_hidden_states(name: str) -> None:
    torch.manual_seed(0)
    lengths = [7000, 2000]
    last = built(name)
    num_layers = last.config.num_hidden_layers

    def with_layers(layers: object) -> encoders.Frames:
        encoder = encoders.build(encoders.parse(CASES[name] | {"encoder_layers": layers})).eval()
        encoder.load_state_dict(last.state_dict())
        result = encode(encoder, lengths)
        assert result.layers[0].shape[-1] == encoder.config.frame_size
        return result

    reference = encode(last, lengths).layers[0]
    every = with_layers("per_llm_layer").layers
    assert len(every) == num_layers
    torch.testing.assert_close(every[-1], reference)
    two = with_layers([0, -1]).layers
    assert len(two) == 1
    assert two[0].shape[-1] == 2 * last.config.hidden_size
    torch.testing.assert_close(two[0][..., last.config.hidden_size :], reference)
    torch.testing.assert_close(with_layers([1]).layers[0], every[0])
    assert not torch.allclose(every[0], every[1])


@every_encoder
@pytest.mark.parametrize("layers", [[3], [-4], [], [0, 17]])
def test_layers_out_of_range_are_refused(name: str, layers: list[int]) -> None:
    with pytest.raises(PalError, match="encoder_layers"):
        encoders.parse(CASES[name] | {"encoder_layers": layers})


@every_encoder
def test_frozen_means_no_gradient_and_eval_mode(name: str) -> None:
    encoder = encoders.build(encoders.parse(CASES[name] | {"frozen": True}))
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    features = encoder.config.front_end()(noise(3000)).requires_grad_()
    assert not encoder(features, torch.tensor([3000])).layers[0].requires_grad
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


@every_encoder
def test_gradient_flows_when_not_frozen(name: str) -> None:
    encoder = encoders.build(encoders.parse(CASES[name])).train()
    encode(encoder, [300, 9000]).layers[0].square().sum().backward()
    assert [key for key, value in encoder.named_parameters() if value.requires_grad and value.grad is None] == []


@every_encoder
def test_training_mode_keeps_clips_apart(name: str) -> None:
    dropout = {"config": CASES[name]["config"] | NO_DROPOUT.get(name, WAVE_NO_DROPOUT)} if "config" in CASES[name] else {}
    no_random = {"spec_augment": False} if name == "conv" else {}
    encoder = encoders.build(encoders.parse(CASES[name] | dropout | no_random)).train()
    pair, alone = encode(encoder, [5000, 9000]), encode(encoder, [5000])
    torch.testing.assert_close(pair.layers[0][0, : int(alone.lengths[0])], alone.layers[0][0], atol=1e-5, rtol=1e-5)


@every_encoder
def test_resolved_needs_no_checkpoint_and_measures_the_same(name: str) -> None:
    config = encoders.parse(CASES[name])
    resolved = encoders.parse(config.resolved().model_dump())
    assert resolved.checkpoint is None
    assert [resolved.output_lengths(n) for n in (1, 5000, 99_999)] == [config.output_lengths(n) for n in (1, 5000, 99_999)]
    encoders.build(resolved).load_state_dict(built(name).state_dict())


@every_encoder
def test_a_configuration_survives_its_dump(name: str) -> None:
    config = encoders.parse(CASES[name])
    dump = config.model_dump(mode="json")
    assert encoders.parse(dump).model_dump(mode="json") == dump


def test_a_wrong_number_of_windows_is_refused() -> None:
    encoder = built("conv")
    with pytest.raises(ValueError, match=r"2 windows.* 1 clips ask for 1"):
        encoder(torch.zeros(2, 10, 64), torch.tensor([1600]))
