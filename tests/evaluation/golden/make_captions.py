"""Writes captions.json. Needs pycocoevalcap, sacrebleu and Java (pip install pycocoevalcap sacrebleu)."""

import json
from itertools import zip_longest
from pathlib import Path

from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from sacrebleu.metrics import BLEU

ITEMS = [
    (
        "A dog barks twice and a car passes by.",
        ["A dog is barking while a car drives past", "Two barks, then a passing car.", "A dog barks."],
    ),
    ("rain falls on a tin roof", ["Heavy rain is falling on a metal roof.", "Rain falls on a tin roof", "It's raining hard!"]),
    (
        "A man speaks, a man speaks, a man speaks",
        ["A man speaks while a crowd cheers", "A man doesn't stop talking; people cheer."],
    ),
    (
        "Birds chirp",
        ["Several birds are chirping in a high-pitched tone at 5:30 a.m.", "Birds chirp and sing (quietly) in the trees."],
    ),
    (
        "An engine idles and then it revs up loudly",
        ["A motor can't start", "Someone tries to start an engine, it isn't working...", "Engine idling"],
    ),
    ("", ["Silence", "There is no sound here."]),
    (
        "A clock's ticking",
        ['A clock ticks at a steady rhythm while a bell chimes "ding" in the distance', "Tick-tock & tick-tock of a clock"],
    ),
    (
        "Music plays and a woman sings",
        ["A woman sings and music plays", "Music plays and a woman sings", "Singing with 3.5 seconds of music"],
    ),
]
SENTENCES = [
    "It’s “loud” – don't you think?!",
    "They're gonna leave; we cannot.",
    "The U.S. police car's siren wails at 10:30, 1,000 people & 50% of $20...",
    "a/c unit [humming] {x} o'clock",
    "A man speaks.A dog barks. Mr. Smith laughs",
    "  two  spaces\tand a tab  ",
]


def tokenise(texts: list[str]) -> list[str]:
    found = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
    return [found[index][0] for index in range(len(texts))]


candidates = tokenise([candidate for candidate, _ in ITEMS])
references = [tokenise(texts) for _, texts in ITEMS]
cider, bleu = CiderScorer(n=4, sigma=6.0), BleuScorer(n=4)
for candidate, texts in zip(candidates, references, strict=True):
    cider += (candidate, texts)
    bleu += (candidate, texts)
corpus, per_item = cider.compute_score()
columns = list(zip_longest(*references))
golden = {
    "items": [{"candidate": candidate, "references": texts} for candidate, texts in ITEMS],
    "cider_d": float(corpus),
    "cider_d_per_item": [float(value) for value in per_item],
    "bleu_coco": bleu.compute_score(option="closest")[0],
    "bleu_sacre": [
        BLEU(tokenize="none", smooth_method="none", max_ngram_order=n).corpus_score(candidates, columns).score / 100
        for n in (1, 2, 3, 4)
    ],
    "tokens": [{"text": text, "tokens": tokens.split()} for text, tokens in zip(SENTENCES, tokenise(SENTENCES), strict=True)],
}
target = Path(__file__).with_name("captions.json")
target.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
