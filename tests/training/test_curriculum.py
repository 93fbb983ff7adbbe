"""The curriculum end to end on real recordings: the script behind the numbers of docs/training.md, with tiny shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the recordings of {DATA} are not here")
def test_three_stages_on_real_recordings(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/curriculum.py", str(DATA), "--out", str(tmp_path), "--tiny", "--steps", "3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--arms", "plits,pal,lal-frozen-llm"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "curriculum.json").read_text())["rows"]
    stages = ["connector", "closed", "open"]
    assert [(row["arm"], row["stage"]) for row in rows] == [(a, s) for a in ("plits", "pal", "lal-frozen-llm") for s in stages]
    assert all(row["steps"] == 3 and 3 < row["last_loss"] < 8 for row in rows)  # about the log of 400 tokens: hardly trained
