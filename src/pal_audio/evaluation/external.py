"""SPICE, FENSE and other caption metrics that aac-metrics computes, in another environment's Python.

aac-metrics wants an older transformers and torchaudio, so it is never imported here: a short script runs under the Python that
is named, reads JSON on its stdin and writes JSON on its stdout.
"""

import json
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pal_audio.errors import PalError
from pal_audio.evaluation.metrics.extras import same_length

# Runs there, under any Python from 3.8. What libraries print goes to stderr; stdout holds the answer alone.
# Java is looked for first because every metric's captions are tokenised in it.
SCRIPT = """
import json, os, shutil, sys
answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
request = json.loads(sys.stdin.buffer.read().decode("utf-8"))

def answer(**found):
    json.dump(found, answer_to)
    answer_to.close()
    sys.exit(0)

def numbers(values):
    return values.tolist() if hasattr(values, "tolist") else values

try:
    from importlib.metadata import version
    import aac_metrics
except ImportError as error:
    answer(error="aac-metrics", detail=str(error), name=getattr(error, "name", None))
java = os.environ.get("AAC_METRICS_JAVA_PATH", "java")
if shutil.which(java) is None:
    answer(error="java", detail=java)
try:
    corpus, items = aac_metrics.evaluate(request["candidates"], request["references"], metrics=request["metrics"])
    corpus = {name: float(value) for name, value in corpus.items()}
    items = {name: numbers(values) for name, values in items.items() if name in corpus}
except Exception as error:
    if isinstance(error, KeyError) and error.args[0] in request["metrics"]:
        answer(error="metric", detail=error.args[0])
    answer(error="failed", detail="%s: %s" % (type(error).__name__, error))
answer(corpus=corpus, items=items, version=version("aac-metrics"))
"""


@dataclass(frozen=True)
class ExternalScores:
    """What aac-metrics gave.

    Args:
        corpus: score of the set by metric, in aac-metrics' units (SPICE 0 to 1, CIDEr-D 0 to 10, SPIDEr their mean).
        per_item: scores of the items by metric, where the metric has them.
        version: of aac-metrics.
    """

    corpus: dict[str, float]
    per_item: dict[str, list[float]]
    version: str


def score_with_aac_metrics(
    python: Path,
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("spice", "spider"),
    timeout_s: float = 1800.0,
) -> ExternalScores:
    """Runs aac-metrics on captions. The whole test set at once: the word weights of its CIDEr-D come from the references given.

    Args:
        python: interpreter of an environment that has aac-metrics, its downloads (`aac-metrics-download`) and Java.
        candidates: one caption an item.
        references: at least one caption an item.
        metrics: names that aac-metrics knows, such as "spice", "spider", "spider_fl", "fense", "meteor".
        timeout_s: after which it is stopped, with all that it started.

    Raises:
        PalError: The lists do not fit, there is no such interpreter, it lacks aac-metrics or Java, it failed, took too long, or
            answered in another form than agreed.
    """
    same_length(len(candidates), len(references), ("candidates", "lists of references"))
    if not metrics:
        raise PalError("aac-metrics needs the name of at least one metric, for example spice")
    request = {"candidates": list(candidates), "references": [list(item) for item in references], "metrics": list(metrics)}
    return _scores(_run(Path(python), json.dumps(request), timeout_s), Path(python), len(candidates))


def _run(python: Path, request: str, timeout_s: float) -> str:
    """Stdout of the script. It has a folder and a process group of its own, and nothing of this environment on its path."""
    python = python.expanduser().absolute()  # not resolved: a virtual environment's interpreter is a link
    foreign = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    with tempfile.TemporaryDirectory(prefix="pal-aac-metrics-") as folder:
        try:
            process = subprocess.Popen(
                [str(python), "-c", SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env=environment,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise PalError(
                f"{python} is no Python that can be run ({error.strerror}): name the one of an environment with aac-metrics"
            ) from None
        try:
            output, complaints = process.communicate(request, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise PalError(
                f"aac-metrics took longer than {timeout_s:g} s under {python}: give it more time or fewer metrics"
            ) from None
        finally:
            _stop(process)
    if process.returncode:
        last = (complaints.strip().splitlines() or ["nothing on stderr"])[-1]
        raise PalError(f"{python} ended with status {process.returncode} instead of scores: {last}")
    return output


def _stop(process: "subprocess.Popen[str]") -> None:
    """Ends the process and what it started, Java included."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _scores(output: str, python: Path, num_items: int) -> ExternalScores:
    try:
        found: Any = json.loads(output)
    except json.JSONDecodeError:
        raise PalError(f"{python} answered with no JSON: {output.strip()[:80]!r}. Is it a Python?") from None
    if not isinstance(found, dict):
        raise PalError(f"{python} answered with JSON of another form than agreed: {output.strip()[:80]!r}")
    _raise_what_it_found(found, python)
    corpus, items, version = found.get("corpus"), found.get("items"), found.get("version")
    if not isinstance(corpus, dict) or not isinstance(items, dict) or not isinstance(version, str) or not corpus:
        raise PalError(f"{python} answered with JSON of another form than agreed: {output.strip()[:80]!r}")
    for name, value in corpus.items():
        if not _is_number(value):
            raise PalError(f"aac-metrics {version} gave {value!r} for {name}, not a finite number")
    for name, values in items.items():
        if not isinstance(values, list) or len(values) != num_items or not all(map(_is_number, values)):
            raise PalError(f"aac-metrics {version} did not give {num_items} finite numbers for the items' {name}")
    return ExternalScores(corpus, items, version)


def _raise_what_it_found(found: dict[str, Any], python: Path) -> None:
    error, detail = found.get("error"), " ".join(str(found.get("detail")).split())
    if error == "aac-metrics" and found.get("name") == "aac_metrics":
        raise PalError(f"{python} has no aac-metrics: {python} -m pip install aac-metrics, then aac-metrics-download")
    if error == "aac-metrics":
        raise PalError(f"{python} has an aac-metrics that cannot be imported: {detail}")
    if error == "java":
        raise PalError(f"aac-metrics needs Java and there is no {detail!r}: install one of 8 to 13, or set AAC_METRICS_JAVA_PATH")
    if error == "metric":
        raise PalError(
            f"aac-metrics does not know the metric {detail!r}: spice, spider, spider_fl, fense and meteor are some it knows"
        )
    if error is not None and "java" in detail.lower():
        raise PalError(f"aac-metrics takes Java 8 to 13 alone; set AAC_METRICS_JAVA_PATH to one. It said: {detail[:200]}")
    if error is not None:
        raise PalError(f"aac-metrics failed under {python}: {detail[:300]}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
