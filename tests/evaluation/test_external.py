"""The adapter of aac-metrics: against a recorded answer, each way in which the other side can fail, and its script."""

import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from pal_audio.errors import PalError
from pal_audio.evaluation.external import score_with_aac_metrics
from tests.evaluation.metrics.golden import FOLDER, golden

ITEMS = golden("captions")["items"]
CANDIDATES = [item["candidate"] for item in ITEMS]
REFERENCES = [item["references"] for item in ITEMS]
RECORDED = golden("aac_metrics")


def interpreter(folder: Path, lines: str) -> Path:
    """A stand-in for a Python: a shell script."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def answering(folder: Path, answer: object) -> Path:
    """Reads what it is asked, keeps it, and gives the answer."""
    (folder / "answer").write_text(answer if isinstance(answer, str) else json.dumps(answer))
    return interpreter(folder, f"cat > {folder}/asked\nenv > {folder}/environment\npwd > {folder}/where\ncat {folder}/answer")


def test_the_recorded_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "of-this-environment")
    python = answering(tmp_path, (FOLDER / "aac_metrics.json").read_text())
    scores = score_with_aac_metrics(python, CANDIDATES, REFERENCES, ["cider_d", "bleu_4"])
    assert scores.corpus == RECORDED["corpus"]
    assert scores.per_item == RECORDED["items"]
    assert scores.version == "0.6.0"
    asked = json.loads((tmp_path / "asked").read_text())
    assert asked == {"candidates": CANDIDATES, "references": REFERENCES, "metrics": ["cider_d", "bleu_4"]}
    assert "PYTHONPATH" not in (tmp_path / "environment").read_text()
    assert not Path((tmp_path / "where").read_text().strip()).exists()  # a folder of its own, gone again


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo nonsense", "answered with no JSON: 'nonsense'"),
        ("true", "answered with no JSON: ''"),
        ("echo first >&2; echo last >&2; exit 3", "ended with status 3 instead of scores: last"),
        ("exit 1", "ended with status 1 instead of scores: nothing on stderr"),
        ("echo '[1]'", "another form than agreed"),
        ("echo '{}'", "another form than agreed"),
        ('echo \'{"corpus": {}, "items": {}, "version": "1"}\'', "another form than agreed"),
        ('echo \'{"corpus": {"spice": NaN}, "items": {}, "version": "1"}\'', "gave nan for spice"),
        ('echo \'{"corpus": {"spice": "1"}, "items": {}, "version": "1"}\'', "gave '1' for spice"),
        ('echo \'{"corpus": {"spice": 1}, "items": {"spice": [1]}, "version": "1"}\'', "did not give 8 finite numbers"),
    ],
)
def test_an_interpreter_that_gives_no_scores(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(PalError, match=message):
        score_with_aac_metrics(interpreter(tmp_path, lines), CANDIDATES, REFERENCES, ["spice"])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"error": "aac-metrics", "name": "aac_metrics", "detail": "No module"},
            "has no aac-metrics: .* -m pip install aac-metrics",
        ),
        (
            {"error": "aac-metrics", "name": "torch", "detail": "No module named 'torch'"},
            "cannot be imported: No module named 'torch'",
        ),
        ({"error": "java", "detail": "java"}, "needs Java and there is no 'java'"),
        ({"error": "metric", "detail": "spike"}, "does not know the metric 'spike'"),
        ({"error": "failed", "detail": "RuntimeError: Invalid Java executable to tokenize sentences. (java)"}, "Java 8 to 13"),
        ({"error": "failed", "detail": "OSError: no\nmodel"}, "aac-metrics failed under .*: OSError: no model"),
    ],
)
def test_what_the_script_found_is_said_in_one_line(tmp_path: Path, found: dict, message: str) -> None:
    with pytest.raises(PalError, match=message) as caught:
        score_with_aac_metrics(answering(tmp_path, found), CANDIDATES, REFERENCES, ["spice"])
    assert "\n" not in str(caught.value)


def test_no_interpreter(tmp_path: Path) -> None:
    for path in (tmp_path / "python", tmp_path, __file__):
        with pytest.raises(PalError, match="no Python that can be run"):
            score_with_aac_metrics(Path(path), CANDIDATES, REFERENCES)


def test_what_takes_too_long_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    python = interpreter(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child; wait")
    start = time.monotonic()
    with pytest.raises(PalError, match=r"longer than 0\.5 s"):
        score_with_aac_metrics(python, CANDIDATES, REFERENCES, timeout_s=0.5)
    assert time.monotonic() - start < 20
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running(child)


def running(pid: int) -> bool:
    """Whether a process is alive; one that only waits to be collected is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


FAKE = """
import sys
class Tensor(list):
    def tolist(self):
        return list(self)
def evaluate(candidates, references, metrics):
    print("loading ...")
    import os
    os.system("echo java is noisy too")
    if metrics == ["broken"]:
        raise RuntimeError("out of\\nmemory")
    known = {"spice": [float(len(text)) for text in candidates]}
    values = {name: known[name] for name in metrics}
    items = {name: Tensor(all) for name, all in values.items()}
    return {name: sum(all) for name, all in values.items()}, {**items, "more": ["x"]}
"""


@pytest.fixture
def other_environment(tmp_path: Path) -> Path:
    """An interpreter with a make-believe aac-metrics, and a make-believe Java in its search path."""
    site = tmp_path / "site"
    (site / "aac_metrics-9.9.dist-info").mkdir(parents=True)
    (site / "aac_metrics-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: aac-metrics\nVersion: 9.9\n")
    (site / "aac_metrics.py").write_text(FAKE)
    (tmp_path / "bin").mkdir()
    interpreter(tmp_path / "bin", "true").rename(tmp_path / "bin" / "java")
    return interpreter(tmp_path, f'PATH={tmp_path}/bin PYTHONPATH={site} exec {sys.executable} "$@"')


def test_the_script_there(other_environment: Path) -> None:
    scores = score_with_aac_metrics(other_environment, ["a", "béé"], [["x"], ["y", "z"]], ["spice"])
    assert (scores.corpus, scores.per_item, scores.version) == ({"spice": 4.0}, {"spice": [1.0, 3.0]}, "9.9")


@pytest.mark.parametrize(
    ("metric", "message"),
    [("nonsense", "does not know the metric 'nonsense'"), ("broken", "failed under .*: RuntimeError: out of memory")],
)
def test_the_script_says_what_failed(other_environment: Path, metric: str, message: str) -> None:
    with pytest.raises(PalError, match=message):
        score_with_aac_metrics(other_environment, ["a"], [["x"]], [metric])


def test_the_script_looks_for_java(other_environment: Path) -> None:
    os.remove(other_environment.parent / "bin" / "java")
    with pytest.raises(PalError, match="needs Java"):
        score_with_aac_metrics(other_environment, ["a"], [["x"]], ["spice"])


def test_the_script_looks_for_aac_metrics(other_environment: Path) -> None:
    module = other_environment.parent / "site" / "aac_metrics.py"
    module.write_text("import surely_not_installed")
    with pytest.raises(PalError, match="cannot be imported: No module named 'surely_not_installed'"):
        score_with_aac_metrics(other_environment, ["a"], [["x"]], ["spice"])
    module.unlink()
    with pytest.raises(PalError, match="has no aac-metrics"):
        score_with_aac_metrics(other_environment, ["a"], [["x"]], ["spice"])


def test_what_is_not_worth_asking(tmp_path: Path) -> None:
    with pytest.raises(PalError, match="2 candidates but 1 lists"):
        score_with_aac_metrics(tmp_path, ["a", "b"], [["x"]])
    with pytest.raises(PalError, match="at least one metric"):
        score_with_aac_metrics(tmp_path, ["a"], [["x"]], [])
