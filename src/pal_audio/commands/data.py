"""`pal data`: makes and checks data."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pal_audio.commands import models, recipes
from pal_audio.commands.train import RecipeArgument, SetOption, checked_settings
from pal_audio.errors import PalError

if TYPE_CHECKING:
    from pal_audio.data import Example

app = typer.Typer(help="Makes and checks data.", epilog="Example: pal data mix quickstart scenes")


def _print_tasks(wanted: bool) -> None:
    if not wanted:
        return
    from pal_audio.data.mixing.tasks import TASK_KINDS

    for name, kind in TASK_KINDS.items():
        question, answer = kind.example
        print(f"{name:<11} {kind.about:<24} of {kind.categories[0]:<11} {question}  {answer}")
    raise typer.Exit


@app.command("mix", epilog="Example: pal data mix quickstart scenes --set data.seed=2")
def mix(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the sounds and their manifest.")],
    settings: SetOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, max=256, help="Processes. Otherwise one a core. The result does not depend on it.", show_default=False
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list-tasks", callback=_print_tasks, is_eager=True, help="What can be asked, with an example each.")
    ] = False,
) -> None:
    """Composes the scenes of a recipe's data section: sounds, and a manifest of questions with exact answers."""
    path, overrides = recipes.find(recipe), checked_settings(settings)
    from pal_audio.data.mix import build
    from pal_audio.training.recipe import load_data

    with progress_bar("composing") as report:
        manifests = build(load_data(path, overrides), out, report, workers)
    for manifest in manifests:
        print(manifest)


def _set_names() -> list[str]:
    """Names of the importers: what the shell completes."""
    from pal_audio.data.importers import IMPORTERS

    return list(IMPORTERS)


def _print_sets(wanted: bool) -> None:
    if not wanted:
        return
    from pal_audio.data.importers import IMPORTERS

    for name, importer in IMPORTERS.items():
        print(f"{name:<12} needs  {importer.needs}\n{'':<12} from   {importer.archives}")
    raise typer.Exit


@app.command("import", epilog="Example: pal data import esc50 ESC-50-master manifests/esc50")
def import_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name out of --list.", autocompletion=_set_names)],
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="The set as its archives unpack; nothing is written there.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for the manifests.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the manifests that are in OUT.")] = False,
    listed: Annotated[
        bool,
        typer.Option("--list", callback=_print_sets, is_eager=True, help="Say what each set needs and where it comes from."),
    ] = False,
) -> None:
    """Writes manifests of a public set, or of tables of your own."""
    from pal_audio.data.importers import import_set

    with progress_bar("importing") as report:
        result = import_set(name, root, out, overwrite, report)
    for split, num in result.num_examples.items():
        print(out / f"{split}.jsonl")
        print(f"pal: {split}: {num} examples", file=sys.stderr)
    for reason, num in result.num_left_out.items():
        print(f"pal: left out: {num} items, {reason}; see {out / 'missing.txt'}", file=sys.stderr)
    print(f"pal: audio stays in {result.root}: name it as a root, as in pal data check --root", file=sys.stderr)


@app.command("check", epilog="Example: pal data check manifests/esc50/train.jsonl --root ESC-50-master")
def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A .jsonl file.")],
    roots: Annotated[
        list[Path] | None, typer.Option("--root", metavar="DIR", help="A folder outside MANIFEST's own that may hold audio.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    model: Annotated[str | None, typer.Option(metavar="FOLDER", help="Show what this model would be trained to say.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.001, help="The longest clip, in seconds. Otherwise an hour.")] = None,
) -> None:
    """Lists everything that is wrong with a manifest and its audio; exit status 2 if there is something."""
    folder = None if model is None else models.resolve(model, "--model")
    for root in roots or []:
        if not root.is_dir():
            raise PalError(f"--root {root}: no such folder")
    from pal_audio.audio import MAX_SECONDS
    from pal_audio.cli import one_line
    from pal_audio.data.check import inspect_manifest, shown

    with progress_bar("checking") as bar:
        report = inspect_manifest(manifest, roots or [], max_seconds=max_seconds or MAX_SECONDS, progress=bar)
    preview = None if folder is None or report.first is None else _preview(folder, report.first)
    numbers = {"examples": report.num_examples, "open": report.num_open, "clips": report.num_clips, "seconds": report.seconds}
    if as_json:
        problems = [problem._asdict() for problem in report.problems]
        print(json.dumps({"manifest": str(manifest), **numbers, "problems": problems, "preview": preview}))
    else:
        for problem in report.problems:
            print(one_line(shown(manifest, problem)))
        if preview is not None:
            print(f"supervised, {len(preview['supervised'])} of {preview['num_tokens']} tokens of {preview['id']}:", end=" ")
            print(" ".join(repr(token) for token in preview["supervised"]))
        elif folder is not None:
            print("pal: no preview: no example is faultless and has an answer", file=sys.stderr)
        said = f"{report.num_examples} examples ({report.num_open} without an answer), {report.num_clips} clips"
        print(f"pal: {said}, {report.seconds:.1f} s; problems: {len(report.problems)}", file=sys.stderr)
    if report.problems:
        raise typer.Exit(2)


@app.command("shard", epilog="Example: pal data shard manifests/esc50/train.jsonl shards --root ESC-50-master")
def shard(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A .jsonl file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for the shards.")],
    size_mb: Annotated[float, typer.Option(min=0.001, help="A shard is closed when it reaches this size.")] = 256,
    roots: Annotated[
        list[Path] | None, typer.Option("--root", metavar="DIR", help="A folder outside MANIFEST's own that may hold audio.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in which examples are dealt to shards.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the shards that are in OUT.")] = False,
) -> None:
    """Writes a manifest and its sound as tar shards, which `type: shards` of a recipe streams."""
    for root in roots or []:
        if not root.is_dir():
            raise PalError(f"--root {root}: no such folder")
    from pal_audio.data.manifest import read_manifest
    from pal_audio.data.shard_writing import write_shards

    with progress_bar("writing shards") as report:
        index = write_shards(read_manifest(manifest, roots or []), out, round(size_mb * 10**6), seed, overwrite, report)
    print(out)
    print(f"pal: {index.num_examples} examples in {len(index.shards)} shards", file=sys.stderr)


def _preview(folder: str, example: "Example") -> dict[str, Any]:
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not mix with the answer
        from dataclasses import asdict

        from pal_audio.data.preview import preview

        _, processor = models.load(folder, "cpu")
        return asdict(preview(processor, example))


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr, moved by calls with what is done and what there is in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
