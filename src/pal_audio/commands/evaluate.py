"""`pal eval`: scores of a model that can be trusted; `pal eval score` and `pal eval compare` work on what it wrote."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pal_audio.commands import models
from pal_audio.commands.data import progress_bar
from pal_audio.errors import PalError

if TYPE_CHECKING:
    from pal_audio.data.frame_cache import FrameCache
    from pal_audio.evaluation.metrics.matching import TextEmbedder

_REST = "runs/quickstart out --tasks esc10,fsdd --data DATA --split esc10=val"
EXAMPLE = f"Example: pal eval {_REST}"


class _RunUnlessNamed(TyperGroup):
    """`pal eval MODEL ...` is `pal eval run MODEL ...`: a first word that is no command begins the arguments of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunUnlessNamed,
    help="Scores a model on tasks. `pal eval MODEL ...` is short for `pal eval run MODEL ...`.",
    epilog=EXAMPLE,
)


def _print_tasks(wanted: bool) -> None:
    if not wanted:
        return
    from pal_audio.evaluation.tasks import TASKS

    for name, task in TASKS.items():
        question = "each item's own question" if task.prompt is None else task.prompt
        print(f"{name:<14} {task.kind}, answered by {' and '.join(task.methods)}; splits {', '.join(task.splits)} (the first)")
        print(f"{'':<14} put    --data {name}=ROOT, ROOT with {task.needs}")
        print(f"{'':<14} from   {task.archives}")
        print(f"{'':<14} asks   {question}")
    raise typer.Exit


@app.command("run", epilog=f"Example: pal eval run {_REST}")
def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a model or of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder for answers, scores and report.")],
    tasks: Annotated[str, typer.Option(metavar="A,B", help="Names out of --list.")],
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]ROOT", help="Where a task's set is; without a name, a folder that holds each by its name."),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="NAME=SPLIT", help="Another split of a set.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="NAME=TEXT", help="Another question.")] = None,
    method: Annotated[str | None, typer.Option(metavar="A,B", help="rank, generate, match. Otherwise each task's own.")] = None,
    conditions: Annotated[
        str, typer.Option(metavar="A,B", help="What is heard; real is always among them.")
    ] = "real,shuffled,muted,noise",
    roots: Annotated[
        list[Path] | None, typer.Option("--root", metavar="DIR", help="A folder outside a manifest's own that may hold audio.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N items of a task, evenly spaced.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items that are asked together.")] = 16,
    frame_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Frames of `pal encode`, read instead of sound.")
    ] = None,
    embedder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Text-embedding model for `match`. Otherwise a bag of words.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Ask the I-th of N parts, from 0; then `pal eval score OUT`.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, max=256, help="Processes that read sound. Otherwise all cores but one; 0 from frames.", show_default=False
        ),
    ] = None,
    device: models.DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an evaluation in OUT stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an evaluation that is in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
    listed: Annotated[
        bool,
        typer.Option("--list", callback=_print_tasks, is_eager=True, help="Say what there is, what it needs, where to put it."),
    ] = False,
) -> None:
    """Asks a model the questions of tasks, and scores the answers."""
    if resume and overwrite:
        raise PalError("--resume and --overwrite exclude each other: go on with the evaluation, or replace it")
    folder = models.resolve(model, "MODEL")
    for root in roots or []:
        if not root.is_dir():
            raise PalError(f"--root {root}: no such folder")
    index, num_shards = _shard(shard)
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints must not mix with the answer
        from pal_audio.data.cores import reading_workers
        from pal_audio.evaluation.run import Request, ask, plan

        planned = plan(
            Request(
                tasks=_names(tasks, "--tasks"),
                data={name: Path(value) for name, value in _pairs(data, "--data", nameless=True).items()},
                splits=_pairs(split, "--split"),
                prompts=_pairs(prompt, "--prompt"),
                methods=None if method is None else _known(method, "--method", ("rank", "generate", "match")),
                conditions=_known(conditions, "--conditions", ("real", "shuffled", "muted", "noise")),
                roots=tuple(roots or []),
                limit=limit,
            )
        )
        for reason in planned.left_out.values():
            print(f"pal: left out: {reason}", file=sys.stderr)
        place = models.pick_device(device)
        texts = _embedder(embedder, place)
        loaded, processor = models.load(folder, place)
        from pal_audio.evaluation.model_answerer import ModelAnswerer

        frames = None if frame_cache is None else _frames(frame_cache, loaded)
        answerer = ModelAnswerer(loaded, processor, folder, frames)
        with progress_bar("asking") as report:
            num = 0 if workers is None and frames is not None else reading_workers(workers)
            wrote = ask(answerer, planned, out, batch_size, place, (index, num_shards), resume, overwrite, report, num)
    if num_shards > 1:
        print(wrote)
        print(f"pal: when all {num_shards} shards are done: pal eval score {out}", file=sys.stderr)
    else:
        _scored(out, texts, as_json)
    if planned.left_out:
        raise PalError(
            f"{len(planned.left_out)} of the tasks were left out: {', '.join(planned.left_out)}; the reasons are above"
        )


@app.command("score", epilog="Example: pal eval score out --with aac-metrics --python other-env/bin/python")
def score(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of an evaluation.")],
    with_: Annotated[str | None, typer.Option("--with", metavar="TOOL", help="aac-metrics, for captions.")] = None,
    python: Annotated[Path | None, typer.Option(metavar="FILE", help="The Python that has TOOL.")] = None,
    metrics: Annotated[str, typer.Option(metavar="A,B", help="Which of the tool's scores.")] = "spice,fense",
    timeout_s: Annotated[float, typer.Option(min=1, help="Seconds that the tool may take for a task.")] = 3600,
    embedder: Annotated[Path | None, typer.Option(metavar="DIR", help="Text-embedding model for `match`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Scores what was answered: again, with another embedder, by another tool, or shards put together."""
    if (with_ is None) != (python is None):
        raise PalError("--with and --python belong together: the tool, and the Python of an environment that has it")
    if with_ not in (None, "aac-metrics"):
        raise PalError(f"--with {with_}: there is aac-metrics")
    with contextlib.redirect_stdout(sys.stderr):
        from pal_audio.evaluation.shards import join_shards

        if not out.is_dir():
            raise PalError(f"OUT {out}: no such folder")
        join_shards(out)
        texts = _embedder(embedder, "cpu")
        if python is not None:
            from pal_audio.evaluation.aac import score_captions

            score_captions(out, python, _names(metrics, "--metrics"), timeout_s)
    _scored(out, texts, as_json)


@app.command("compare", epilog="Example: pal eval compare out-lal out-plits")
def compare(
    first: Annotated[Path, typer.Argument(metavar="OUT_A", help="Folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(metavar="OUT_B", help="Another, of the same tasks.")],
    embedder: Annotated[Path | None, typer.Option(metavar="DIR", help="Text-embedding model for `match`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compares two models on the same items, by a paired test."""
    with contextlib.redirect_stdout(sys.stderr):
        from pal_audio.evaluation.compare import compare as run_compare
        from pal_audio.evaluation.report import shown

        rows = run_compare(first, second, _embedder(embedder, "cpu"))
    if as_json:
        print(json.dumps({"first": str(first), "second": str(second), "tasks": rows}))
        return
    for row in rows:
        low, high = (shown(row["compared_by"], value) for value in row["interval"])
        verdict = "no clear difference" if row["interval"][0] <= 0 <= row["interval"][1] else "a difference"
        values = " against ".join(shown(row["score"], row[name]) for name in ("first", "second"))
        by = shown(row["compared_by"], row["difference"])
        if not row["same_prompt"]:
            verdict += " (the prompts differ)"
        print(f"{row['task']} by {row['method']}, {row['num']} items: {row['score']} {values}; "
              f"the first is better by {by} ({low} to {high}), p = {row['p_value']:.4f}: {verdict}")  # fmt: skip


def _scored(out: Path, embedder: "TextEmbedder | None", as_json: bool) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        from pal_audio.data.folder import locked
        from pal_audio.evaluation.official import write_official
        from pal_audio.evaluation.report import SUMMARY, summary, write_report
        from pal_audio.evaluation.scoring import read_evaluation
        from pal_audio.evaluation.scoring import score as run_score

        evaluation = read_evaluation(out)
        with locked(out):
            write_official(evaluation)
            scores = run_score(evaluation, embedder)
            report = write_report(out)
    if as_json:
        print(json.dumps(scores, ensure_ascii=False))
    else:
        table = Table(*SUMMARY)
        for row in summary(scores):
            table.add_row(*(escape(cell) for cell in row))
        Console(stderr=True).print(table)
        print(report)


def _embedder(folder: Path | None, device: str) -> "TextEmbedder | None":
    if folder is None:
        return None
    from pal_audio.evaluation.metrics.matching import MeanPoolingEmbedder

    return MeanPoolingEmbedder(folder, device)


def _frames(folder: Path, model: Any) -> "FrameCache":
    from pal_audio.data.frame_cache import FrameCache

    return FrameCache(folder, model.encoders)


def _names(value: str, option: str) -> list[str]:
    names = [name.strip() for name in value.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise PalError(f"{option} {value}: write names with commas between them, each once")
    return names


def _known(value: str, option: str, known: Sequence[str]) -> list[Any]:
    names = _names(value, option)
    stray = next((name for name in names if name not in known), None)
    if stray is not None:
        raise PalError(f"{option} {stray}: there are {', '.join(known)}")
    return names


def _pairs(values: list[str] | None, option: str, nameless: bool = False) -> dict[str, str]:
    """NAME=VALUE by name; a value without a name is that of ""."""
    found: dict[str, str] = {}
    for value in values or []:
        name, equals, rest = value.partition("=")
        if not equals and nameless:
            name, rest = "", value
        elif not equals or not name or not rest:
            raise PalError(f"{option} {value}: write it as NAME=VALUE")
        if name in found:
            raise PalError(f"{option} {value}: given twice")
        found[name] = rest
    return found


def _shard(value: str | None) -> tuple[int, int]:
    if value is None:
        return 0, 1
    index, slash, num = value.partition("/")
    if not slash or not index.isdecimal() or not num.isdecimal() or not 0 <= int(index) < int(num):
        raise PalError(f"--shard {value}: write it as I/N with I from 0 to N - 1, for example 0/4")
    return int(index), int(num)
