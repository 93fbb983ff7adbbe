"""Every importer on its own layout made small: counts, what is left out, the error for another layout, and the set's traps."""

import json
from pathlib import Path

import pytest

from pal_audio.data import IMPORTERS, Example, check_manifest, import_set, inspect_manifest, read_manifest
from pal_audio.errors import PalError

from .layouts import CASES, GONE, Case, sound, text

BY_NAME = {case.name: case for case in CASES}


def imported(name: str, tmp_path: Path) -> dict[str, list[Example]]:
    """The examples of a set by split."""
    BY_NAME[name].make(tmp_path / "set")
    result = import_set(name, tmp_path / "set", tmp_path / "out")
    return {split: read_manifest(tmp_path / "out" / f"{split}.jsonl", [tmp_path / "set"]) for split in result.num_examples}


def test_every_importer_has_its_case() -> None:
    assert set(BY_NAME) == set(IMPORTERS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_official_layout(case: Case, tmp_path: Path) -> None:
    root, out = tmp_path / "set", tmp_path / "out"
    case.make(root)
    before = sorted((path, path.lstat().st_mtime_ns) for path in root.rglob("*"))
    result = import_set(case.name, root, out)
    assert result.num_examples == case.num_examples
    assert sum(result.num_left_out.values()) == case.num_left_out
    assert result.num_left_out["no such audio file"] == 1
    missing = (out / "missing.txt").read_text().splitlines()
    assert len(missing) == case.num_left_out
    assert any(GONE in line or "4_theo_6" in line for line in missing)
    assert {path.stem for path in out.glob("*.jsonl")} == set(case.num_examples)
    assert json.loads((out / "import.json").read_text())["num_examples"] == case.num_examples
    for split in case.num_examples:
        manifest = out / f"{split}.jsonl"
        assert inspect_manifest(manifest, [root]).problems == []  # every clip decodes
        assert str(tmp_path) not in manifest.read_text()
        assert check_manifest(manifest) != []  # the audio lies outside, and no root is named
    assert sorted((path, path.lstat().st_mtime_ns) for path in root.rglob("*")) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_another_layout_is_one_clear_error(case: Case, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    sound(root / "stray.wav")
    with pytest.raises(PalError, match="looked for") as raised:
        import_set(case.name, root, tmp_path / "out")
    assert case.looked_for in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not any(path.name != ".lock" for path in (tmp_path / "out").iterdir())


# ---- traps of single sets


def test_esc_knows_its_folds(tmp_path: Path) -> None:
    BY_NAME["esc50"].make(tmp_path / "set")
    table = tmp_path / "set" / "meta" / "esc50.csv"
    table.write_text(table.read_text() + "6-1-A-0.wav,6,0,dog,True,1,A\n")
    with pytest.raises(PalError, match="line 12: fold 6; the folds are 1 to 5"):
        import_set("esc50", tmp_path / "set", tmp_path / "out")


def test_librispeech_text(tmp_path: Path) -> None:
    (example,) = imported("librispeech", tmp_path)["val"]
    assert (example.answer, example.task) == ("go do you hear", "transcribe")
    assert example.meta == {"subset": "dev-other", "speaker": "84"}


def test_librispeech_refuses_a_name_that_is_not_of_its_chapter(tmp_path: Path) -> None:
    text(tmp_path / "set/dev-clean/1/2/1-2.trans.txt", "../../../1-2-0 HELLO")
    with pytest.raises(PalError, match=r"line 1: '\.\./\.\./\.\./1-2-0' is not an utterance of 1-2"):
        import_set("librispeech", tmp_path / "set", tmp_path / "out")


def test_audiocaps_rows_of_one_clip_are_one_example_with_references(tmp_path: Path) -> None:
    found = imported("audiocaps", tmp_path)
    assert found["val"][0].meta["references"] == [f"Caption {n}" for n in range(3, 8)]
    assert [example.meta["references"] for example in found["test"]] == [["Caption 9", "Caption 10"], ["Caption 11"]]
    # The same audiocap_id twice is one row; a comma in quotes and a leading hyphen are nothing special.
    assert [example.answer for example in found["train"]] == ["A dog barks, twice", "Rain"]
    names = {Path(example.audio[0].path).name for split in found.values() for example in split}
    assert names == {"-bCdEfGhIjK_30.wav", "YABC.wav", "VAL.m4a", "TST_000005.flac", "TST_60.wav"}


def test_clotho_has_a_caption_an_example_to_train_and_references_to_test(tmp_path: Path) -> None:
    found = imported("clotho", tmp_path)
    assert [example.answer for example in found["train"]] == ["One, two", "Three", "Four", "Five", "Six"]
    assert len({example.id for example in found["train"]}) == 5
    assert found["test"][0].meta["references"] == ["One, two", "Three", "Four", "Five", "Six"]


def test_openaqa_finds_foreign_paths_by_their_ends(tmp_path: Path) -> None:
    whole, with_input, textual = imported("openaqa", tmp_path)["train"]
    assert whole.audio[0].path.endswith("/set/audioset/20k/clip_07.flac")
    assert with_input.question == "Which sounds overlap?\nhello"
    assert textual.audio == []
    assert whole.meta == {"dataset": "as_20k", "audio_id": "/data/x/audioset/20k/clip_07.flac"}


def test_openaqa_never_leaves_its_folder(tmp_path: Path) -> None:
    sound(tmp_path / "secret.wav")
    sound(tmp_path / "set" / "a.wav")
    sound(tmp_path / "set" / "secret.wav")  # it, not the one outside, is what an end of those paths leads to
    items = [
        {"instruction": "What?", "audio_id": name, "output": "x"}
        for name in ("../secret.wav", str(tmp_path / "secret.wav"), "a.wav")
    ]
    text(tmp_path / "set" / "train.json", json.dumps(items))
    result = import_set("openaqa", tmp_path / "set", tmp_path / "out")
    assert result.num_examples == {"train": 3}


def test_mmau_categories_and_open_questions(tmp_path: Path) -> None:
    found = imported("mmau", tmp_path)
    assert [example.meta["category"] for example in found["test-mini"]] == ["Reasoning", "Reasoning"]  # one is a list in the file
    (open_example,) = found["test"]
    assert open_example.answer is None
    assert open_example.meta["choices"] == ["Bell", "Horn"]
    assert open_example.question.endswith("reply with its text alone:\n- Bell\n- Horn")
    assert "the answer is none of the choices" in (tmp_path / "out" / "missing.txt").read_text()


def test_mmar_keeps_what_its_scores_need(tmp_path: Path) -> None:
    (example,) = imported("mmar", tmp_path)["test"]
    assert (example.task, example.answer) == ("sound", "Bell")
    assert example.meta["rubric"] == [{"name": "Cue"}, {}]


def test_fsd50k_labels(tmp_path: Path) -> None:
    found = imported("fsd50k", tmp_path)
    assert found["val"][0].answer == "Fill (with liquid); Water"
    assert found["test"][0].meta["labels"] == ["Bark", "Dog", "Animal"]


def test_vggsound_has_no_header_and_commas_in_labels(tmp_path: Path) -> None:
    found = imported("vggsound", tmp_path)
    assert found["train"][0].answer == "railroad car, train wagon"
    table = tmp_path / "set" / "vggsound.csv"
    table.write_text("# YouTube ID,start seconds,label,train/test split\n" + table.read_text())
    assert import_set("vggsound", tmp_path / "set", tmp_path / "again").num_examples == {"train": 1, "test": 1}


def test_sharegpt_markers_become_parts_in_their_places(tmp_path: Path) -> None:
    first, textual, factory = imported("sharegpt", tmp_path)["train"]
    assert [message.role for message in first.messages] == ["system", "user", "assistant"]
    assert [part.type for part in first.messages[1].parts] == ["audio", "text"]
    assert first.question == "Listen.\nWhat is it?"
    assert first.meta == {"id": 7}
    assert textual.audio == []
    assert [part.type for part in factory.messages[0].parts] == ["text", "audio", "text", "audio"]
    assert [Path(part.path).name for part in factory.audio] == ["a.wav", "b.wav"]
    assert "2 markers for 1 clips" in (tmp_path / "out" / "missing.txt").read_text()


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"conversations": []}, "needs `conversations` or `messages`"),
        ({"conversations": ["a"]}, "needs `conversations` or `messages`"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "role 'observation' is not known"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value' must be text, not 3"),
        ({"conversations": [{"from": "human", "value": "x"}], "audios": [3]}, "'audios' must be a path"),
        ({"conversations": [{"from": "human", "value": "x"}], "audios": ["a"], "sound": "b"}, "clips under audios and sound"),
    ],
)
def test_sharegpt_names_the_item(tmp_path: Path, item: dict, said: str) -> None:
    text(tmp_path / "set" / "mine.json", json.dumps([item]))
    with pytest.raises(PalError, match="item 1: ") as raised:
        import_set("sharegpt", tmp_path / "set", tmp_path / "out")
    assert said in str(raised.value)


def test_csv_of_ones_own(tmp_path: Path) -> None:
    found = imported("csv", tmp_path)
    assert [(example.answer, example.task) for example in found["train"]] == [("dog", "classify"), ("dog; rain", "tags")]
    assert found["train"][1].meta["labels"] == ["dog", "rain"]
    (stretch,) = found["test"]
    assert (stretch.audio[0].start_s, stretch.audio[0].end_s, stretch.question) == (0, 0.05, "What?")
    assert "empty answer" in (tmp_path / "out" / "missing.txt").read_text()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path;label", "a.wav;dog"], r"lacks the column\(s\) path"),
        (["path,question", "a.wav,What?"], "needs the columns question and answer, or label"),
        (["path,label,start_s", "a.wav,dog,soon"], "line 2: start_s: "),
        (["path,label,start_s,end_s", "a.wav,dog,2,1"], r"line 2: end_s 1\.0 must lie after start_s 2\.0"),
        (["path,label,split", "a.wav,dog,dev"], "line 2: split 'dev'; there are train, val, test"),
        (["path,label", ",dog"], "line 2: the path is empty"),
    ],
)
def test_a_wrong_csv_is_named(tmp_path: Path, lines: list[str], said: str) -> None:
    text(tmp_path / "set" / "mine.csv", *lines)
    with pytest.raises(PalError, match=said):
        import_set("csv", tmp_path / "set", tmp_path / "out")


def test_one_file_may_be_root(tmp_path: Path) -> None:
    BY_NAME["csv"].make(tmp_path / "set")
    assert import_set("csv", tmp_path / "set" / "calls.csv", tmp_path / "out").num_examples == {"train": 2}
    with pytest.raises(PalError, match="no such folder"):
        import_set("esc50", tmp_path / "set" / "calls.csv", tmp_path / "out2")
