"""Writes aac_metrics.json: what aac-metrics answers to the adapter's script.

Usage: python make_aac_metrics.py PYTHON, in this environment; PYTHON is that of one with aac-metrics, its downloads and Java.
"""

import json
import sys
from pathlib import Path

from pal_audio.evaluation import external

here = Path(__file__).parent
items = json.loads((here / "captions.json").read_text(encoding="utf-8"))["items"]
request = {
    "candidates": [item["candidate"] for item in items],
    "references": [item["references"] for item in items],
    "metrics": ["cider_d", "bleu_4"],
}
answer = json.loads(external._run(Path(sys.argv[1]), json.dumps(request), timeout_s=1800))
(here / "aac_metrics.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
