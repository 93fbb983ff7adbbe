"""Writes choices.json. Usage: python make_choices.py MMAU, where MMAU is a clone of the benchmark's repository (needs tqdm)."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path

SETS = [
    ["Bell", "Horn", "Drum", "Dog"],
    ["dog", "dog barking", "cat"],
    ["A dog barks.", "A cat, then a dog", "Rain"],
    ["1", "2", "10", "3/4"],
    ["C major", "A minor", "C# minor"],
    ["Yes", "No"],
    ["+", "-", "Bell"],
    ["the b side", "the a side"],
]
FORMS = [
    "{}",
    "({letter}) {}",
    "{letter}. {}",
    "({letter})",
    "The answer is {}.",
    "not a {}",
    "{} and more",
    "  ",
    "I don't know: {}!",
    "{upper}",
]

spec = importlib.util.spec_from_file_location("official", Path(sys.argv[1]) / "evaluation.py")
official = importlib.util.module_from_spec(spec)
spec.loader.exec_module(official)

cases = []
for choices in SETS:
    for truth, (index, said), form in itertools.product(choices, enumerate(choices), FORMS):
        answer = form.format(said, letter="ABCD"[index], upper=said.upper())
        cases.append([answer, truth, choices, bool(official.string_match(truth, answer, choices))])
target = Path(__file__).with_name("choices.json")
target.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n", encoding="utf-8")
