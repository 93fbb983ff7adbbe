"""benchmarks/lab/elsewhere: rendered voices and notes, their questions, and a folder of them asked of the best arm."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.lab.__main__ import _flow, _parser, main
from benchmarks.lab.analysis import read_grid
from benchmarks.lab.elsewhere import asking, folder, notes, speech
from benchmarks.lab.elsewhere.programs import called
from benchmarks.lab.flow import Flow, flow_in
from benchmarks.lab.recipes import Shelf
from benchmarks.lab.tables import elsewhere

from pal_audio.audio import load_audio
from pal_audio.data.manifest import Example, read_manifest
from pal_audio.data.mixing import Composer, read_catalogue
from pal_audio.errors import PalError
from tests.data.mixing.sets import make_all, mix
from tests.lab_recipes import make_recipes
from tests.lab_sounds import MADE_BY, make_elsewhere, tones
from tests.test_lab import plant, right_of

needs_programs = pytest.mark.skipif(
    shutil.which(speech.PROGRAM) is None or shutil.which(notes.PROGRAM) is None or not notes.SOUNDFONT.is_file(),
    reason="espeak-ng, fluidsynth or TimGM6mb is not installed: apt-get install espeak-ng fluidsynth timgm6mb-soundfont",
)


def asked(path: Path) -> list[Example]:
    return [example for file in ("exact", "words") for example in read_manifest(path / f"{file}.jsonl")]


def test_questions_are_in_the_words_of_the_worlds_own_tests(tmp_path: Path) -> None:
    scene = {"seconds": 4, "num_digits": [2, 3], "event_s": [0.4, 1.0]}
    tasks = {
        "digit": {"kind": "classify", "categories": ["digit"]},
        "instrument": {"kind": "classify", "categories": ["instrument"]},
        "digits": {"kind": "transcribe"},
    }
    config = mix(make_all(tmp_path / "data"), tasks=tasks, scene=scene)
    composer = Composer(config, read_catalogue(config))
    world: dict[str, set[str]] = {}
    for index in range(300):
        name, plan = next(composer.plans("test", index))
        world.setdefault(name, set()).add(plan.question)
    ours: dict[str, set[str]] = {}
    for example in asked(make_elsewhere(tmp_path / "sounds", digits=10, instruments=("piano",) * 8)):
        ours.setdefault(example.task.split()[0], set()).add(example.question)
    assert ours["digit"] <= world["digit"]
    assert ours["digits"] <= world["digits"]
    assert ours["instrument"] == world["instrument"]
    assert len(ours["digits"]) == 2, "each wording in turn"


def test_every_wording_is_as_frequent_under_every_answer(tmp_path: Path) -> None:
    sounds = list(tones(digits=3))
    single = next(iter(folder.TASKS))
    many = [replace(item, name=f"{item.name}-{n}") for n in range(4) for item in sounds if item.task == single] + sounds
    folder.write(tmp_path / "f", iter(many), MADE_BY)
    counted = Counter((item.answer, item.question) for item in asked(tmp_path / "f") if item.task == single and "-3" in item.id)
    of_answer = Counter(
        answer for answer, _ in Counter((i.answer, i.question) for i in asked(tmp_path / "f") if i.task == single)
    )
    assert set(of_answer.values()) == {4}
    assert max(counted.values()) == 1


def test_sounds_come_out_at_one_rate_and_level_with_what_made_them(tmp_path: Path) -> None:
    path = make_elsewhere(tmp_path / "f")
    waves = [load_audio(example.audio[0].path, 16_000) for example in asked(path)]
    assert {len(wave) for wave in waves} == {8_000, 24_000}
    assert [float(np.sqrt(np.mean(wave**2))) for wave in waves] == pytest.approx([0.05] * len(waves), rel=0.05)
    index = folder.read_folder(path)
    assert index["made_by"] == MADE_BY
    single, string, note = index["tasks"].values()
    assert single["slices"] == {"low": [0, 1], "high": [2, 3]}
    assert (single["group"], single["metric"], single["best_guess"]) == ("single digits", "accuracy", 0.5)
    assert (string["group"], string["metric"], string["best_guess"]) == ("speech", "errors", None)
    assert (note["group"], len(note["ids"])) == ("general sound", 4)
    again = make_elsewhere(tmp_path / "g")
    assert folder.read_folder(again)["hash"] == index["hash"]
    assert folder.read_folder(make_elsewhere(tmp_path / "h", digits=3))["hash"] != index["hash"]


def test_silence_and_folders_with_something_in_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PalError, match="voices/low-0 came out silent"):
        make_elsewhere(tmp_path / "a", level=0.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(PalError, match="is not empty"):
        make_elsewhere(tmp_path / "b")
    with pytest.raises(PalError, match=r"no sound from elsewhere here; render it by"):
        folder.read_folder(tmp_path / "a")


def test_a_note_is_in_the_score_where_it_is_cut_out() -> None:
    score = notes._midi(73, [(60, 100), (64, 60)])
    assert score[:14] == b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0"
    assert int.from_bytes(score[18:22], "big") == len(score) - 22
    assert score[22:29] == bytes([0, 0xC0, 73, 0, 0x90, 60, 100])
    # 1.2 s of 960 ticks are 1152 = 9 * 128 + 0, the rest of 4 s 2688 = 21 * 128 + 0
    assert score[29:34] == bytes([0x89, 0, 0x80, 60, 0])
    assert score[34:39] == bytes([0x95, 0, 0x90, 64, 60])
    assert score.endswith(bytes([0x95, 0, 0xFF, 0x2F, 0]))


def test_notes_lie_within_the_worlds_range_and_between_its_pitches() -> None:
    assert len(notes.INSTRUMENTS) == 16
    for instrument in notes.INSTRUMENTS:
        pitches = [pitch for pitch, _ in notes.notes_of(instrument)]
        assert len(set(pitches)) == 10
        assert {velocity for _, velocity in notes.notes_of(instrument)} == {60, 100}
    assert [pitch for pitch, _ in notes.notes_of("cello")] == list(range(37, 65, 3))


def test_what_is_said_covers_voices_speeds_pitches_and_lengths() -> None:
    said = list(speech.utterances())
    assert len({item.name for item in said}) == len(said) == 480
    single = Counter(item.digits for item in said if len(item.digits) == 1)
    assert set(single.values()) == {40}
    assert Counter(len(item.digits) for item in said if len(item.digits) > 1) == {3: 20, 4: 20, 5: 20, 6: 20}
    for accent in speech.ACCENTS:
        of_accent = [item for item in said if item.accent == accent]
        ways = Counter((speech.VARIANTS[item.variant], item.words_a_minute, item.pitch) for item in of_accent)
        assert len(ways) == 8
        assert len(set(ways.values())) == 1


def test_what_is_not_installed_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(notes, "SOUNDFONT", tmp_path / "none.sf2")
    assert main(["elsewhere", str(tmp_path / "out"), "--soundfont", str(tmp_path / "none.sf2")]) == 2
    packages = "espeak-ng fluidsynth timgm6mb-soundfont"
    listed = ", ".join(packages.split())
    assert capsys.readouterr().err == f"lab: error: not installed here: {listed}; on Debian: apt-get install {packages}\n"
    assert not (tmp_path / "out").exists()


def sf2(path: Path, name: bytes) -> Path:
    info = b"INFOINAM" + len(name).to_bytes(4, "little") + name
    path.write_bytes(b"RIFF\x00\x00\x00\x00sfbkLIST" + len(info).to_bytes(4, "little") + info)
    return path


def test_the_worlds_own_soundfont_and_other_files_are_refused(tmp_path: Path) -> None:
    assert notes.name_of(sf2(tmp_path / "a.sf2", b"A bank\0\0")) == "A bank"
    with pytest.raises(PalError, match="is 'Fluid R3 GM', which the world's own notes come from"):
        notes.name_of(sf2(tmp_path / "b.sf2", b"Fluid R3 GM\0"))
    (tmp_path / "c.sf2").write_bytes(b"RIFF")
    for path in (tmp_path / "c.sf2", tmp_path / "gone.sf2"):
        with pytest.raises(PalError, match="no soundfont"):
            notes.name_of(path)


def test_a_program_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(PalError, match=r"^sh ended with status 3: twice$"):
        called("sh", "-c", "echo once >&2; echo twice >&2; exit 3")
    with pytest.raises(PalError, match="no-such-program: cannot be run"):
        called("no-such-program")


@needs_programs
def test_voices_and_notes_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "ACCENTS", ("en-us", "en-gb-scotland"))
    monkeypatch.setattr(speech, "VARIANTS", {"m3": "male", "f2": "female"})
    monkeypatch.setattr(notes, "INSTRUMENTS", {"flute": (73, 61), "piano": (0, 46)})
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        assert main(["elsewhere", str(path)]) == 0
    ours, again = (folder.read_folder(path) for path in paths)
    assert ours == again, "the same programs give the same sound"
    assert "eSpeak NG" in ours["made_by"]["speech"]
    assert "FluidSynth" in ours["made_by"]["notes"]
    assert "TimGM6mb" in ours["made_by"]["soundfont"]
    single, string, note = ours["tasks"].values()
    assert (len(single["ids"]), len(string["ids"]), len(note["ids"])) == (80, 16, 20)
    assert set(single["slices"]) == {"en-us", "en-gb-scotland", "male", "female"}
    by_id = {example.id: load_audio(example.audio[0].path, 16_000) for example in asked(paths[0])}
    loudest_hz = np.abs(np.fft.rfft(by_id["notes/flute-061-060"][4_000:20_000])).argmax()
    harmonic = loudest_hz / (440 * 2 ** ((61 - 69) / 12))
    assert round(harmonic) >= 1
    assert harmonic / round(harmonic) == pytest.approx(1, abs=0.02), "a third of a semitone"
    slow, fast = (len(by_id[f"voices/en-us-m3-{speed}-35-seven"]) for speed in speech.WORDS_A_MINUTE)
    assert slow > 1.1 * fast
    assert not np.array_equal(by_id["voices/en-us-m3-130-35-seven"], by_id["voices/en-gb-scotland-m3-130-35-seven"])


@needs_programs
@pytest.mark.parametrize(
    ("name", "value", "said"), [("ACCENTS", ("en-mars",), "no accent en-mars"), ("VARIANTS", {"x9": "male"}, "no variant !v/x9")]
)
def test_a_voice_that_is_not_there_is_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, said: str
) -> None:
    monkeypatch.setattr(speech, name, value)
    with pytest.raises(PalError, match=said):
        folder.render(tmp_path / "out")


@pytest.fixture
def flow(tmp_path: Path) -> Flow:
    """A lab whose results were of one folder."""
    sounds = make_elsewhere(tmp_path / "sounds")
    (tmp_path / "out" / "elsewhere").mkdir(parents=True)
    (tmp_path / "out" / "elsewhere" / "0.json").write_text(json.dumps({"hash": folder.read_folder(sounds)["hash"]}))
    return Flow(tmp_path, tmp_path / "out", Shelf(make_recipes(tmp_path / "recipes")), elsewhere=sounds)


def test_results_of_another_folder_are_not_mixed_with_those_of_this_one(flow: Flow, tmp_path: Path) -> None:
    asking.check(flow)
    other = replace(flow, elsewhere=make_elsewhere(tmp_path / "other", digits=4))
    with pytest.raises(PalError, match=r"0\.json is of other sound than .*other; delete"):
        asking.check(other)
    with pytest.raises(PalError, match="no sound from elsewhere here"):
        asking.check(replace(flow, elsewhere=tmp_path))
    assert asking.elsewhere_steps(replace(flow, elsewhere=None)) == []
    assert [step.name for step in asking.elsewhere_steps(flow)] == ["elsewhere-0", "elsewhere-1", "elsewhere-2"]


def test_the_folder_is_remembered_and_looked_at_first(flow: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path), "--recipes", str(tmp_path / "recipes"), "--tiny", "--minutes", "0"]
    out = tmp_path / "fresh"
    assert main([*words, "--out", str(out), "--elsewhere", str(tmp_path)]) == 2
    assert "no sound from elsewhere here" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--out", str(out), "--elsewhere", str(flow.elsewhere)]) == 3
    assert flow_in(out).elsewhere == flow.elsewhere
    assert main([*words, "--out", str(out)]) == 3
    assert flow_in(out).elsewhere is None


def test_a_folder_that_is_named_from_here_is_found_from_where_the_steps_run(tmp_path: Path) -> None:
    words = ["run", "--root", str(tmp_path), "--out", "out", "--tiny", "--elsewhere", "sounds"]
    flow = _flow(_parser().parse_args(words))
    assert flow.elsewhere == Path.cwd() / "sounds"


def test_an_answer_that_the_world_never_taught_is_refused(flow: Flow) -> None:
    assert flow.elsewhere is not None
    labels = ["piano", "bass guitar", *"zero one two three".split()]
    folder.check_answers(flow.elsewhere, labels)
    for gone, said in (("piano", "is 'piano', and the world has no 'piano'"), ("three", "and the world has no 'three'")):
        with pytest.raises(PalError, match=said):
            folder.check_answers(flow.elsewhere, [label for label in labels if label != gone])


def test_the_table_has_scores_beside_those_of_the_world(tmp_path: Path) -> None:
    plant(tmp_path, {"lal": [right_of(300, 0), right_of(304, 1)]})
    single = folder.TASKS["digits by other voices"] | {"like": "digits"}
    for seed, errors in ((0, 2), (1, 4)):
        part = {"num": 1, "score": errors / 10}
        task = {
            "metric": "errors",
            "best_guess": None,
            "num": 5,
            "score": errors / 20,
            "like": single["like"],
            "slices": {"en-us": part},
        }
        other = {"metric": "accuracy", "best_guess": 0.1, "num": 400, "score": 0.5, "like": "no such", "slices": {}}
        told = {"arm": "lal", "seed": seed, "hash": "x", "made_by": MADE_BY, "tasks": {"digits by others": task, "notes": other}}
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / "elsewhere" / f"{seed}.json").write_text(json.dumps(told))
    line, table = elsewhere(read_grid(tmp_path))
    assert line == "Arm lal, 2 seeds. no one, voices low, high; no synthesizer, soundfont tones."
    assert "| digits by others | errors over words | 5 |  | 15.0 (10.0 to 20.0) | digits: 2.5 (2.5 to 2.5) |" in table
    assert "| digits by others: en-us | errors over words | 1 |  | 30.0 (20.0 to 40.0) |  |" in table
    assert "| notes | right | 400 | 10.0 | 50.0 (50.0 to 50.0) |  |" in table
