"""Ask a finished run about sound files that it never heard, and print its answers beside the truth.

python examples/ask_quickstart.py [RUN] [NUM]        default: runs/quickstart 10
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pal_audio.data.collation import Collator
from pal_audio.data.manifest import read_manifest
from pal_audio.model import load
from pal_audio.training.run import resolved_recipe
from pal_audio.training.scores import answer_all


def main(run: Path, num: int) -> None:
    """Print a table of `num` held-out questions, spread over the tasks."""
    recipe = resolved_recipe(run)
    model, processor = load(run / "final")
    examples = read_manifest(run / "data" / "test.jsonl", recipe.data.roots)
    tasks = sorted({example.task for example in examples})
    chosen = [example for task in tasks for example in [e for e in examples if e.task == task][: -(-num // len(tasks))]][:num]
    table = Table("file", "question", "answer", "truth", "", title="files it never heard")
    for example, answer in zip(chosen, answer_all(model, Collator(processor), chosen), strict=True):
        file = Path(example.audio[0].path)
        table.add_row(file.name, answer.question, answer.answer, answer.truth, "right" if answer.right else "wrong")
    console = Console()
    console.print(table)
    console.print(f'One file of your own: pal ask FILE "What sound is this?" --model {run}')


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"), int(sys.argv[2]) if len(sys.argv) > 2 else 10)
