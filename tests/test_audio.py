"""`load_audio`: planted sines through every way in, every refusal, damage, limits, segments and URL rules."""

import errno
import http.server
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import urllib.parse
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_audio import audio
from pal_audio.audio import AudioError, SilentAudioWarning, TruncatedAudioWarning, ffmpeg, https, load_audio, pyav_decode
from pal_audio.errors import PalError

pytestmark = pytest.mark.filterwarnings("error")  # a warning that a test does not expect fails it

RATE_HZ = 24_000  # one that Opus takes too
TONE_HZ = 440.0
WRITTEN = {  # name -> soundfile's format and subtype
    "u8.wav": ("WAV", "PCM_U8"),
    "16.wav": ("WAV", "PCM_16"),
    "24.wav": ("WAV", "PCM_24"),
    "float.wav": ("WAV", "FLOAT"),
    "double.wav": ("WAV", "DOUBLE"),
    "a.flac": ("FLAC", "PCM_16"),
    "vorbis.ogg": ("OGG", "VORBIS"),
    "opus.ogg": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.aiff": ("AIFF", "PCM_16"),
    "a.au": ("AU", "PCM_16"),
    "a.caf": ("CAF", "PCM_16"),
}
MUXED = {"a.m4a": ("mp4", "aac", 44_100), "a.webm": ("webm", "libopus", 48_000), "a.aac": ("adts", "aac", 24_000)}


def tone(seconds=1.0, rate_hz=RATE_HZ, hz=TONE_HZ, peak=0.5):
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def sweep(seconds, rate_hz=RATE_HZ):
    """A tone whose pitch tells the time: a segment cut at the wrong place differs."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * (300 * t + 200 * t**2))).astype(np.float32)


def encode(samples, name="16.wav", rate_hz=RATE_HZ):
    file = io.BytesIO()
    file_format, subtype = WRITTEN[name]
    sf.write(file, samples, rate_hz, format=file_format, subtype=subtype)
    return file.getvalue()


def mux(name, seconds=1.0, signal=tone, **options):
    """A tone or sweep, encoded with PyAV."""
    file_format, codec, rate_hz = MUXED[name]
    samples = signal(seconds, rate_hz)
    file = io.BytesIO()
    with av.open(file, "w", format=file_format, options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate_hz, 0
        resampler = av.AudioResampler(stream.format, "mono", rate_hz, frame_size=stream.codec_context.frame_size or 960)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def assert_tone(wav_S, seconds, rate_hz=16_000, hz=TONE_HZ, slack_s=0.0):
    assert wav_S.dtype == np.float32
    assert wav_S.ndim == 1
    assert abs(len(wav_S) - seconds * rate_hz) <= 1 + slack_s * rate_hz
    inner_S = wav_S[len(wav_S) // 8 : -len(wav_S) // 8]
    spectrum = np.abs(np.fft.rfft(inner_S * np.hanning(len(inner_S))))
    assert abs(spectrum.argmax() * rate_hz / len(inner_S) - hz) <= rate_hz / len(inner_S)
    assert np.abs(inner_S).max() == pytest.approx(0.5, abs=0.05)


def refused(source, *words, **options):
    with pytest.raises(AudioError) as caught:
        load_audio(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message  # the mend
    for word in words:
        assert word in message
    return message


def with_field(wav, offset, layout, value):
    """A WAV with one header field replaced. In soundfile's: 22 channels, 24 rate, 40 data size."""
    changed = bytearray(wav)
    struct.pack_into(layout, changed, offset, value)
    return bytes(changed)


# ---- formats


@pytest.mark.parametrize("name", WRITTEN)
def test_formats_of_libsndfile(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encode(tone(), name))
    assert_tone(load_audio(path), 1.0)
    assert_tone(load_audio(str(path), 44_100), 1.0, 44_100)


@pytest.mark.parametrize("name", MUXED)
def test_formats_of_ffmpeg(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(mux(name))
    assert_tone(load_audio(path), 1.0, slack_s=0.1)  # AAC without a container keeps its padding
    assert np.array_equal(load_audio(path.read_bytes()), load_audio(path))


@pytest.mark.parametrize("name", ["16.wav", "a.flac", "opus.ogg", "a.mp3"])
def test_stereo_is_averaged(name):
    stereo_SC = np.stack([tone(peak=0.6), tone(peak=0.4)], axis=1)
    assert_tone(load_audio(encode(stereo_SC, name)), 1.0)


def test_stereo_of_ffmpeg_is_averaged(tmp_path):
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        samples_CS = np.stack([tone(1, 44_100, peak=0.6), tone(1, 44_100, peak=0.4)])
        frame = av.AudioFrame.from_ndarray(samples_CS, format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_tone(load_audio(tmp_path / "a.m4a"), 1.0, slack_s=0.06)


@pytest.mark.parametrize("name", ["a.mp3", "a.raw", "a", "clip\n1.txt"])
def test_content_decides_not_the_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encode(tone()))
    assert_tone(load_audio(path), 1.0)


def test_mp3_is_read_in_blocks_without_loss():
    """A seek between two reads, which is soundfile's habit, zeroes the frames after it: MP3 borrows bits from earlier frames."""
    content = encode(tone(10.0), "a.mp3")
    expected_S, _ = sf.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_allclose(load_audio(content, RATE_HZ), expected_S, atol=1e-6)


def test_mp3_without_length_header_is_not_cut(monkeypatch):
    """libsndfile guesses such a length from the first frame's bit rate and drops what is beyond."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([0.3 * rng.standard_normal(RATE_HZ), np.zeros(2 * RATE_HZ), tone()]).astype(np.float32)
    file = io.BytesIO()
    sf.write(file, samples, RATE_HZ, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    bare = file.getvalue().replace(b"Xing", b"Zzzz", 1)
    with sf.SoundFile(io.BytesIO(bare)) as sound:
        assert sound.frames < 3 * RATE_HZ  # else this test plants nothing
    assert len(load_audio(bare)) == pytest.approx(4 * 16_000, abs=0.2 * 16_000)
    tagged = b"ID3\x04\x00\x00\x00\x00\x04\x00" + bytes(512) + file.getvalue()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("FFmpeg runs"))
    assert len(load_audio(tagged)) == 4 * 16_000  # the header after an ID3 tag is found


def test_resampling_in_blocks_equals_at_once():
    samples = sweep(2.0)
    expected_S = soxr.resample(samples, RATE_HZ, 16_000)
    np.testing.assert_allclose(load_audio((samples, RATE_HZ)), expected_S, atol=1e-6)
    assert np.array_equal(load_audio((samples, RATE_HZ), RATE_HZ), samples)


@pytest.mark.parametrize("rate_hz", [1_000, 8_000, 16_000, 44_100, 384_000])
@pytest.mark.parametrize("num_samples", [1, 2, 3, 100])
def test_very_short_clips_give_samples(rate_hz, num_samples):
    wav_S = load_audio((np.full(num_samples, 0.25, np.float32), rate_hz))
    assert len(wav_S) == max(1, len(soxr.resample(np.ones(num_samples), rate_hz, 16_000)))
    if len(wav_S) == 1:
        assert wav_S[0] == pytest.approx(0.25, abs=0.2)


# ---- ways in


def test_file_objects_and_bytes(tmp_path):
    content = encode(tone())
    expected_S = load_audio(content)
    assert_tone(expected_S, 1.0)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert np.array_equal(load_audio(file), expected_S)
        assert not file.closed
        refused(file, "a.wav", "empty")  # it stands at its end now
    for source in (io.BytesIO(content), bytearray(content), memoryview(content)):
        assert np.array_equal(load_audio(source), expected_S)


def test_standard_input_and_an_import_without_torch():
    code = "import sys; from pal_audio.audio import load_audio; print(len(load_audio('-')), 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(audio.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], input=encode(tone()), capture_output=True, env=environment, check=True)
    assert done.stdout.split() == [b"16000", b"False"]


def test_standard_input_that_is_not_piped(monkeypatch):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: True))
    refused("-", "<stdin>", "not piped")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(), isatty=lambda: False))
    refused("-", "<stdin>", "empty")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX thing")
def test_named_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(encode(tone()),))
    writer.start()
    assert_tone(load_audio(path), 1.0)
    writer.join()


def test_array_forms():
    samples = tone()
    stereo_CS = np.stack([1.2 * samples, 0.8 * samples])
    decoder = types.SimpleNamespace(get_all_samples=lambda: types.SimpleNamespace(data=stereo_CS, sample_rate=RATE_HZ))
    for source in (
        (samples, RATE_HZ),
        (stereo_CS, RATE_HZ),
        (stereo_CS.T, float(RATE_HZ)),
        (samples.astype(np.float64), np.int64(RATE_HZ)),
        (samples.tolist(), RATE_HZ),
        {"array": samples, "sampling_rate": RATE_HZ, "path": "a.wav"},
        {"bytes": encode(samples), "path": "a.wav"},
        decoder,
    ):
        assert_tone(load_audio(source), 1.0)
    assert_tone(load_audio(samples, source_rate_hz=RATE_HZ), 1.0)
    assert len(load_audio(([[0.5, 0.1], [0.5, 0.1]], 16_000))) == 2  # a square has its channels first
    assert load_audio(([[0.5, 0.1], [0.5, 0.1]], 16_000))[1] == pytest.approx(0.1)


def test_tensors_need_no_import_of_torch_here():
    import torch

    assert_tone(load_audio((torch.from_numpy(tone()), RATE_HZ)), 1.0)
    refused((torch.from_numpy(tone()).requires_grad_(), RATE_HZ), "<tuple>", "cannot be read as an array")


def test_a_dict_with_a_path_only_reads_the_path(tmp_path):
    (tmp_path / "a.wav").write_bytes(encode(tone()))
    assert_tone(load_audio({"bytes": None, "path": str(tmp_path / "a.wav")}), 1.0)
    refused({"bytes": None, "path": str(tmp_path / "b.wav")}, "b.wav", "no such file")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_integers_are_scaled_by_their_type(dtype):
    info = np.iinfo(dtype)
    middle = (int(info.min) + int(info.max) + 1) // 2
    wav_S = load_audio((np.array([info.min, middle, info.max], dtype), 16_000))
    np.testing.assert_allclose(wav_S, [-1, 0, 1], atol=0.01)
    assert np.abs(wav_S).max() <= 1


def test_the_result_is_a_copy():
    samples = tone(rate_hz=16_000)
    wav_S = load_audio((samples, 16_000))
    assert np.array_equal(wav_S, samples)
    assert not np.shares_memory(wav_S, samples)


# ---- refusals


def test_every_bad_file_is_refused_with_its_name_and_defect(tmp_path):
    wav = encode(tone(0.1))
    rng = np.random.default_rng(0)
    for name, content, defect in (
        ("empty.wav", b"", "empty (0 bytes)"),
        ("text.wav", b"not a sound at all\n" * 99, "nothing in it decodes"),
        ("utf16.mp3", ("words " * 99).encode("utf-16"), "nothing in it decodes"),
        ("random.flac", rng.bytes(5000), "nothing in it decodes"),
        ("picture.png", b"\x89PNG\r\n\x1a\n" + rng.bytes(500), "nothing in it decodes"),
        ("picture.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + rng.bytes(500), "nothing in it decodes"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "nothing in it decodes"),
        ("a.m4a", b"\x00\x00\x00\x18ftypM4A " + bytes(12), "nothing in it decodes"),
        ("header.wav", wav[:44], "no audio frames"),
        ("none.wav", encode(np.zeros(0, np.float32)), "nothing in it decodes"),
        ("half-header.wav", wav[:20], "nothing in it decodes"),
        ("nan.wav", encode(np.array([0, np.nan, 0], np.float32), "float.wav"), "NaN"),
        ("inf.wav", encode(np.array([0, np.inf, 0], np.float32), "float.wav"), "infinite"),
        ("big.wav", encode(np.array([0, 1e300, 0]), "double.wav"), "infinite"),
        ("no-channel.wav", with_field(wav, 22, "<H", 0), "nothing in it decodes"),
        ("fast.wav", with_field(wav, 24, "<I", 2_000_000_000), "sampling rate is 2000000000 Hz"),
        ("slow.wav", with_field(wav, 24, "<I", 10), "sampling rate is 10 Hz"),
        ("still.wav", with_field(wav, 24, "<I", 0), "nothing in it decodes"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, str(tmp_path / name), defect)
    (tmp_path / "folder.wav").mkdir()
    refused(tmp_path / "folder.wav", "folder.wav", "a directory")
    refused(tmp_path / "missing.wav", "missing.wav", "no such file")
    refused(tmp_path / "a.flac" / "b.wav", "b.wav")
    refused(str(tmp_path / "two\nlines.wav"), "two lines.wav", "no such file")
    refused("null\0.wav", "null .wav", "cannot be opened")
    assert issubclass(AudioError, PalError)


def test_ffmpeg_sees_known_formats_only(tmp_path, monkeypatch):
    (tmp_path / "a.webm").write_bytes(mux("a.webm"))
    command = [sys.executable, pyav_decode.__file__, "ogg", "0", "inf"]
    with (tmp_path / "a.webm").open("rb") as file:
        done = subprocess.run(command, stdin=file, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("FFmpeg runs"))
    for content in (
        b"words\n" * 99,
        b"\x89PNG\r\n\x1a\n",
        b"#EXTM3U\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\0" * 999,
    ):
        refused(content, "no audio format is recognised")


def test_a_container_without_audio_is_refused(tmp_path):
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, width=16, height=16, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")))
        container.mux(stream.encode(None))
    refused(tmp_path / "film.mp4", "film.mp4", "no audio stream")


def test_every_bad_array_is_refused():
    good = tone(0.01)
    for source, defect in (
        (np.zeros(0), "shape (0,)"),
        (np.zeros((0, 9)), "shape (0, 9)"),
        (np.zeros((9, 0)), "shape (9, 0)"),
        (np.zeros((2, 2, 2)), "shape (2, 2, 2)"),
        (np.float32(1), "shape ()"),
        (np.array([0, np.nan]), "NaN"),
        (np.array([-np.inf, 0]), "infinite"),
        (np.full((9, 2), 3e38, np.float32) * np.array([1, 1e38]), "infinite"),
        (np.zeros((200, 100)), "100 channels"),
        (np.arange(9), "int64"),
        (np.zeros(9, bool), "bool"),
        (np.zeros(9, complex), "complex128"),
        (np.array(["a"]), "<U1"),
        ([[1.0], [1.0, 2.0]], "cannot be read as an array"),
    ):
        with np.errstate(over="ignore"):
            refused((source, RATE_HZ), "<tuple>", defect)
    refused(good, "<ndarray>", "does not say its sampling rate")
    refused((RATE_HZ, good), "<tuple>", "sampling rate is of type ndarray")
    refused((good, None), "sampling rate is of type NoneType")
    for rate_hz in (0, -16_000, 999, 1e9, np.nan, 16_000.5):
        refused((good, rate_hz), "<tuple>", "sampling rate is")
    refused({"array": good}, "dict", "'array'")
    refused({"array": None, "sampling_rate": 16_000}, "dict", "'array'")
    refused((good, RATE_HZ), "source_rate_hz=16000", source_rate_hz=16_000)
    refused(encode(good), "<bytes>", "source_rate_hz=16000", source_rate_hz=16_000)
    refused((np.full(9000, 3e38, np.float32) * np.sign(tone(9000 / RATE_HZ)), RATE_HZ), "overflow")


@pytest.mark.parametrize("source", [None, 3, [0.1, 0.2], object()])
def test_what_is_no_source_is_refused(source):
    refused(source, type(source).__name__, "not a source of audio")


def test_unreadable_file_objects_are_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(encode(tone(0.1)))
    file = (tmp_path / "a.wav").open("rb")
    file.close()
    refused(file, "a.wav", "cannot be read")
    refused(io.StringIO("text"), "<StringIO>", "cannot be read")

    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(errno.EIO, "disk on fire")

    refused(Broken(), "<Broken>", "disk on fire")


@pytest.mark.parametrize(
    ("options", "defect"),
    [
        ({"sampling_rate_hz": 0}, "sampling_rate_hz=0"),
        ({"sampling_rate_hz": 1e9}, "sampling_rate_hz=1000000000.0"),
        ({"sampling_rate_hz": 16_000.5}, "sampling_rate_hz=16000.5"),
        ({"sampling_rate_hz": "16000"}, "sampling_rate_hz='16000'"),
        ({"sampling_rate_hz": True}, "sampling_rate_hz=True"),
        ({"source_rate_hz": -1}, "source_rate_hz=-1"),
        ({"start_s": -0.1}, "start_s=-0.1"),
        ({"start_s": float("nan")}, "start_s=nan"),
        ({"start_s": float("inf")}, "start_s=inf"),
        ({"end_s": "2"}, "end_s='2'"),
        ({"start_s": 0.5, "end_s": 0.5}, "end_s=0.5 is not after start_s=0.5"),
        ({"end_s": 0}, "end_s=0 is not after start_s=0"),
        ({"max_seconds": 0}, "max_seconds=0"),
        ({"max_bytes": -1}, "max_bytes=-1"),
        ({"max_channels": 0}, "max_channels=0"),
        ({"max_channels": True}, "max_channels=True"),
    ],
)
def test_every_bad_argument_is_refused(options, defect):
    refused(encode(tone(0.1)), defect, **options)


# ---- limits


def test_limit_of_bytes(tmp_path):
    content = encode(tone())
    (tmp_path / "a.wav").write_bytes(content)
    for source in (content, io.BytesIO(content), tmp_path / "a.wav", io.BytesIO(bytes(10**6))):
        refused(source, f"max_bytes={len(content) - 1}", max_bytes=len(content) - 1)
    for source in (content, io.BytesIO(content), tmp_path / "a.wav"):
        load_audio(source, max_bytes=len(content))


def test_an_endless_stream_ends_at_the_limit_of_bytes():
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            self.given += size
            return bytes(size)

    stream = Endless()
    refused(stream, "<Endless>", "max_bytes=100000", max_bytes=100_000)
    assert stream.given < 300_000


def test_an_endless_device_ends_at_the_limit_of_bytes():
    if not Path("/dev/zero").exists():
        pytest.skip("no /dev/zero here")
    refused("/dev/zero", "/dev/zero", "max_bytes=100000", max_bytes=100_000)


def test_limit_of_channels():
    content = encode(np.tile(tone(0.1)[:, None], (1, 5)))
    refused(content, "5 channels", "max_channels=4", max_channels=4)
    load_audio(content, max_channels=5)
    refused((np.ones((3, 99)), RATE_HZ), "3 channels", max_channels=2)


def test_limit_of_seconds_counts_what_decodes():
    for source in (encode(tone()), (tone(), RATE_HZ), encode(tone(), "a.mp3"), mux("a.m4a")):
        refused(source, "max_seconds=0.9", max_seconds=0.9)
        load_audio(source, max_seconds=1.1)
        load_audio(source, max_seconds=0.3, start_s=0.5, end_s=0.75)


def test_a_header_that_lies_about_its_length_allocates_nothing():
    flac = bytearray(encode(tone(), "a.flac"))
    flac[21] |= 0x0F  # the total number of samples in STREAMINFO: 36 bits, all set
    flac[22:26] = b"\xff\xff\xff\xff"
    with pytest.warns(TruncatedAudioWarning, match="promised"):
        wav_S = load_audio(bytes(flac), max_seconds=2)
    assert_tone(wav_S, 1.0, slack_s=0.1)


def test_a_long_quiet_file_is_decoded_only_up_to_the_limit():
    """Minutes of silence compress to almost nothing: neither bytes nor the header bound what decodes."""
    bomb = encode(np.zeros(600 * RATE_HZ, np.float32), "a.flac")
    assert len(bomb) < 100_000
    refused(bomb, "max_seconds=10", max_seconds=10)


def test_ffmpeg_runs_against_the_clock(monkeypatch):
    monkeypatch.setattr(ffmpeg, "PYAV_TIMEOUT_S", 0.001)
    refused(mux("a.m4a"), "<bytes>", "did not finish")


# ---- damage


@pytest.mark.parametrize("name", ["16.wav", "float.wav", "a.aiff", "a.au", "a.flac", "a.mp3"])
def test_of_a_truncated_file_what_decodes_is_used(tmp_path, name):
    path = tmp_path / name
    content = encode(sweep(3.0), name)
    path.write_bytes(content[: len(content) // 2])
    with pytest.warns(TruncatedAudioWarning, match=rf"{name}: .*got \d\.\d+ s of 3\.000 s promised") as caught:
        wav_S = load_audio(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert 0.8 * 16_000 < len(wav_S) < 2 * 16_000
    whole_S = load_audio(content)
    np.testing.assert_allclose(wav_S[:12_000], whole_S[:12_000], atol=1e-4)
    with pytest.warns(TruncatedAudioWarning, match=r"got .* of 2\.500 s"):
        assert len(load_audio(path, start_s=0.5)) == pytest.approx(len(wav_S) - 8_000, abs=2)
    assert len(load_audio(path, start_s=0.2, end_s=0.7)) == 8_000  # the damage lies beyond


def test_no_exception_is_lost_in_a_callback(capfd):
    """libsndfile seeks before the beginning of an AIFF that ends within its header."""
    refused(encode(tone(0.1), "a.aiff")[:30], "nothing in it decodes")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["a.m4a", "a.webm"])
def test_of_a_truncated_container_what_decodes_is_used(name):
    options = {"movflags": "frag_keyframe+empty_moov"} if name == "a.m4a" else {}  # else its index comes last
    content = mux(name, 3.0, sweep, **options)
    with pytest.warns(TruncatedAudioWarning, match=r"<bytes>: .*got \d\.\d+ s of 3\.\d+ s promised"):
        wav_S = load_audio(content[: len(content) // 2])
    assert 0.5 * 16_000 < len(wav_S) < 2.5 * 16_000


def test_a_container_without_its_index_is_refused():
    content = mux("a.m4a")
    refused(content[: len(content) // 2], "nothing in it decodes")


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_wav_written_to_a_pipe_does_not_know_its_length(size):
    wav = with_field(encode(tone()), 40, "<I", size)
    assert_tone(load_audio(wav), 1.0)  # in full, without a warning


def test_silence_is_answered_with_one_warning():
    for source, name in (
        (encode(np.zeros(RATE_HZ, np.float32)), "<bytes>"),
        ((np.zeros(RATE_HZ, np.float32), RATE_HZ), "<tuple>"),
        ((np.stack([tone(), -tone()]), RATE_HZ), "<tuple>"),  # two channels that cancel
    ):
        with pytest.warns(SilentAudioWarning, match=f"{name}: silent") as caught:
            wav_S = load_audio(source)
        assert len(caught) == 1
        assert len(wav_S) == 16_000
    load_audio((np.full(RATE_HZ, 2.0**-15, np.float32), RATE_HZ))  # one step of 16 bits is not silence


# ---- segments


@pytest.mark.parametrize("name", ["16.wav", "a.flac", "vorbis.ogg", "opus.ogg", "a.mp3"])
def test_a_segment_equals_the_slice_of_the_whole(name):
    content = encode(sweep(4.0), name)
    whole_S = load_audio(content, RATE_HZ)
    for start_s, end_s in ((0, 1.5), (0.4, 1.1), (2.25, 4.0), (3.9, None), (None, 0.5)):
        first, last = round((start_s or 0) * RATE_HZ), round((end_s or 4.0) * RATE_HZ)
        segment_S = load_audio(content, RATE_HZ, start_s=start_s, end_s=end_s)
        np.testing.assert_allclose(segment_S, whole_S[first:last], atol=1e-5)


@pytest.mark.parametrize("name", MUXED)
def test_a_segment_of_a_container_equals_the_slice_of_the_whole(name):
    rate_hz = MUXED[name][2]
    content = mux(name, 4.0, sweep)
    whole_S = load_audio(content, rate_hz)
    for start_s, end_s in ((0, 1.5), (0.4, 1.1), (2.25, 3.9)):
        segment_S = load_audio(content, rate_hz, start_s=start_s, end_s=end_s)
        first = round(start_s * rate_hz)
        slip = rate_hz // 1000 if name == "a.webm" else 0  # its time stamps are in milliseconds
        errors = [
            np.abs(segment_S - whole_S[first + i :][: len(segment_S)]).max() for i in range(-slip if start_s else 0, slip + 1)
        ]
        assert min(errors) < 0.02
        assert len(segment_S) == round(end_s * rate_hz) - first


def test_a_segment_of_an_array():
    samples = sweep(2.0, 16_000)
    assert np.array_equal(load_audio((samples, 16_000), start_s=0.5, end_s=1.25), samples[8_000:20_000])
    assert len(load_audio((samples, 16_000), start_s=0.31, end_s=0.31 + 1e-7)) == 1


def test_segments_beyond_the_end_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encode(tone()))
    (tmp_path / "a.m4a").write_bytes(mux("a.m4a"))
    for source in (path, (tone(), RATE_HZ), tmp_path / "a.m4a"):
        name = str(source) if isinstance(source, Path) else "<tuple>"
        refused(source, name, "start_s=7 is not before its end at 1.0", start_s=7)
        refused(source, name, "end_s=7 is beyond its end at 1.0", end_s=7)
        refused(source, name, "end_s=7 is beyond its end at 1.0", start_s=0.5, end_s=7)
    refused(mux("a.aac"), "0 samples from start_s=7 on", start_s=7)  # a bare stream states no length
    refused(mux("a.aac"), "end_s=7 is beyond its end at 1.0", end_s=7)
    assert len(load_audio(path, end_s=1.04)) == 16_000  # rounding in a manifest


def test_a_segment_is_sought_not_decoded_up_to(monkeypatch):
    content = encode(tone(60.0), "a.flac")
    frames = []
    read = sf.SoundFile.read

    def counted(self, **options):
        block = read(self, **options)
        frames.append(len(block))
        return block

    monkeypatch.setattr(sf.SoundFile, "read", counted)
    load_audio(content, start_s=50, end_s=51)
    assert sum(frames) == RATE_HZ


def test_a_segment_of_a_container_is_sought():
    class Counting:
        decoded_s = 0.0

        def __getattr__(self, name):
            return getattr(container, name)

        def decode(self, stream):
            for frame in container.decode(stream):
                self.decoded_s += frame.samples / frame.sample_rate
                yield frame

    counting, output = Counting(), io.BytesIO()
    with av.open(io.BytesIO(mux("a.m4a", 30.0))) as container:
        assert pyav_decode.decode(counting, 20.0, 21.0, output) is None
    assert len(output.getvalue().split(b"\n", 1)[1]) == 4 * MUXED["a.m4a"][2]
    assert counting.decoded_s < 3


# ---- URLs


class Handler(http.server.BaseHTTPRequestHandler):
    content = encode(tone())

    def do_GET(self):
        parts = urllib.parse.urlsplit(self.path)
        if parts.path in ("/to", "/loop"):
            self.send_response(302)
            self.send_header("Location", urllib.parse.parse_qs(parts.query).get("url", ["/loop"])[0])
            self.end_headers()
        elif parts.path == "/drip":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b"RIFF")
                    time.sleep(0.05)
            except OSError:
                return  # the client left
        elif parts.path in ("/clip.wav", "/short.wav", "/endless.wav", "/a%20b.wav"):
            self.send_response(200)
            if parts.path == "/short.wav":
                self.send_header("Content-Length", str(2 * len(self.content)))
            elif parts.path != "/endless.wav":
                self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)
        else:
            self.send_error(404)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def port():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def lookups(monkeypatch):
    """A resolver under which clips.example is this machine; it keeps the names that were asked for."""
    names = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *arguments, **options):
        if host[0].isdigit() or ":" in host:
            return resolve(host, *arguments, **options)
        names.append(host)
        known = {"clips.example": "127.0.0.1", "inside.example": "10.1.2.3", "localhost": "127.0.0.1"}
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(known[host], *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


class PlainSocket(socket.socket):
    def do_handshake(self):
        pass


@pytest.fixture
def open_door(monkeypatch, lookups):
    """127.0.0.1 counts as public and is spoken to without TLS; every other rule stands."""
    is_public = https._is_public
    monkeypatch.setattr(https, "_is_public", lambda address: address == "127.0.0.1" or is_public(address))

    class Context:
        def wrap_socket(self, plain, server_hostname, do_handshake_on_connect):
            timeout = plain.gettimeout()
            wrapped = PlainSocket(fileno=plain.detach())
            wrapped.settimeout(timeout)
            return wrapped

    monkeypatch.setattr(https.ssl, "create_default_context", Context)
    return lookups


def test_urls_are_refused_by_default(lookups):
    for url in ("https://clips.example/a.wav", "http://clips.example/a.wav", "HTTPS://clips.example/a.wav", "ftp://x/a.wav"):
        refused(url, "not fetched", "allow_url")
    assert not lookups


@pytest.mark.parametrize("url", ["http://clips.example/a.wav", "file:///etc/passwd", "ftp://x/a.wav", "https://", "https:///a"])
def test_only_https_is_fetched(url, lookups):
    refused(url, "only https", allow_url=True)
    assert not lookups


PRIVATE = """127.0.0.1 localhost 10.1.2.3 192.168.0.1 169.254.169.254 0.0.0.0 100.64.0.1 2130706433 224.0.0.1 [::1] [fe80::1]
    [fc00::1] [::ffff:127.0.0.1] [::ffff:8.8.8.8] [2002:7f00:1::] [64:ff9b::7f00:1] inside.example clips.example"""


@pytest.mark.parametrize("host", PRIVATE.split())
def test_no_private_address_is_connected_to(host, port, lookups, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("it connects"))
    refused(f"https://{host}:{port}/clip.wav", "/clip.wav", "not a public address", allow_url=True)


def test_public_addresses():
    for address in ("8.8.8.8", "2606:4700:4700::1111"):
        assert https._is_public(address)


def test_an_allowed_url_is_fetched(port, open_door):
    url = f"https://clips.example:{port}/clip.wav"
    assert_tone(load_audio(url, allow_url=True), 1.0)
    assert open_door == ["clips.example"]  # looked up once: the address that was checked is the one connected to
    assert_tone(load_audio(f"https://clips.example:{port}/to?url=/clip.wav", allow_url=True), 1.0)
    assert_tone(load_audio(f"https://clips.example:{port}/a b.wav", allow_url=True), 1.0)
    assert_tone(load_audio(f"https://clips.example:{port}/endless.wav", allow_url=True), 1.0)


@pytest.mark.parametrize(
    ("target", "defect"),
    [
        ("http://clips.example/clip.wav", "only https"),
        ("file:///etc/passwd", "only https"),
        ("https://10.0.0.1/clip.wav", "not a public address"),
        ("https://inside.example/clip.wav", "not a public address"),
        ("https://[::1]/clip.wav", "not a public address"),
        ("//169.254.169.254/latest", "not a public address"),
    ],
)
def test_every_redirect_is_checked(port, open_door, target, defect):
    refused(f"https://clips.example:{port}/to?url={target}", "clips.example", defect, allow_url=True)


def test_redirects_end(port, open_door):
    refused(f"https://clips.example:{port}/loop", "more than 5 redirects", allow_url=True)
    assert len(open_door) == 6


def test_what_a_server_may_not_do(port, open_door, monkeypatch):
    base = f"https://clips.example:{port}"
    size = len(Handler.content)
    refused(f"{base}/missing.wav", "missing.wav", "answers 404", allow_url=True)
    refused(f"{base}/short.wav", f"ended after {size} of {2 * size} bytes", allow_url=True)
    refused(f"{base}/clip.wav", "max_bytes=1000", allow_url=True, max_bytes=1000)
    refused(f"{base}/endless.wav", "max_bytes=1000", allow_url=True, max_bytes=1000)
    refused("https://nowhere.example/a.wav", "not known", allow_url=True)
    refused("https://clips.example:99999/a.wav", "cannot be fetched", allow_url=True)
    refused(f"https://{'a' * 70}.example/a.wav", "cannot be fetched", allow_url=True)
    monkeypatch.setattr(https, "URL_TIMEOUT_S", 0.3)
    start_s = time.monotonic()
    refused(f"{base}/drip", "cannot be fetched", allow_url=True)
    assert time.monotonic() - start_s < 2


def test_a_server_must_speak_tls(port, lookups, monkeypatch):
    monkeypatch.setattr(https, "_is_public", lambda address: True)
    refused(f"https://clips.example:{port}/clip.wav", "cannot be fetched", "SSL", allow_url=True)


def test_secrets_of_a_url_are_not_shown(lookups):
    message = refused("https://user:pass@clips.example/a.wav?token=abc#x", "clips.example/a.wav", allow_url=True)
    assert "pass" not in message
    assert "token" not in message


# ---- whatever comes in


SEEDS = {name: encode(sweep(0.5), name) for name in WRITTEN}
CONTAINERS = {name: mux(name, 0.5, sweep) for name in MUXED}


def loads_or_refuses(content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", SilentAudioWarning)
        warnings.simplefilter("ignore", TruncatedAudioWarning)
        try:
            wav_S = load_audio(content, max_seconds=60)
        except AudioError:
            return
    assert wav_S.dtype == np.float32
    assert wav_S.ndim == 1
    assert len(wav_S) > 0
    assert np.isfinite(wav_S).all()


def damage(draw, content):
    changed = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        # headers are where the decisions are, so half of the flips go there
        position = draw(st.one_of(st.integers(0, 60), st.integers(0, len(changed) - 1)))
        changed[position % len(changed)] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed[: draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))])


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damaged_files_load_or_are_refused(data):
    name = data.draw(st.sampled_from(sorted(SEEDS)))
    loads_or_refuses(damage(data.draw, SEEDS[name]))


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damaged_containers_load_or_are_refused(data):
    name = data.draw(st.sampled_from(sorted(CONTAINERS)))
    loads_or_refuses(damage(data.draw, CONTAINERS[name]))


MAGIC = [b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"FORM", b"\x00\x00\x00\x18ftypM4A "]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(MAGIC), st.binary(max_size=2000))
def test_random_bytes_load_or_are_refused(magic, content):
    loads_or_refuses(magic + content)
