"""Writes normaliser.json. Usage: python make_normaliser.py CLONE, of openai/whisper (needs more-itertools and regex)."""

import json
import sys
import types
from importlib import import_module
from pathlib import Path

TEXTS = [
    "The colour of the theatre is grey.",
    "Mr. Smith won't pay $20 million, uh, for 1,000 tyres!",
    "He'll arrive at twenty-one past two hundred and five",
    "[noise] Hello (laughs) <unk> world hmm",
    "It's the nineteen sixties, isn't it? I'd've gone.",
    "Café naïve œuvre 3.5% ¢5 £5.20",
    "double oh seven, one two three, minus five point three",
    "two and a half",
    "let's organise mum's programme",
    "",
    "(laughs)",
    "First, the twenty-first; then the 2nd one.",
    "Straße — “quoted” … ok",
    "你好 world",
]

package = types.ModuleType("whisper_normalizers")  # so that the rest of whisper, and torch, stay out
package.__path__ = [str(Path(sys.argv[1]) / "whisper" / "normalizers")]
sys.modules["whisper_normalizers"] = package
english = import_module("whisper_normalizers.english").EnglishTextNormalizer()
basic = import_module("whisper_normalizers.basic").BasicTextNormalizer()
cases = [{"text": text, "english": english(text), "basic": basic(text)} for text in TEXTS]
target = Path(__file__).with_name("normaliser.json")
target.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
