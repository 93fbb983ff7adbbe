"""`python -m benchmarks.lab`: see the package's docstring."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import benchmarks.lab
from benchmarks.lab.bundle import as_scored, bundle, check_target, early_steps, is_made, scored_folder, scored_step
from benchmarks.lab.elsewhere import asking as elsewhere
from benchmarks.lab.elsewhere.folder import render
from benchmarks.lab.elsewhere.notes import SOUNDFONT
from benchmarks.lab.flow import DEVICES, SEEDS, TINY_ARMS, Flow, flow_in
from benchmarks.lab.grid import grid_steps
from benchmarks.lab.packing import pack
from benchmarks.lab.rates import rates_of, take
from benchmarks.lab.recipes import FACTORS, Shelf
from benchmarks.lab.report import write_report
from benchmarks.lab.reuse import take_models
from benchmarks.lab.steps import Runner, Step, time_left

from pal_audio.data.cores import num_cores
from pal_audio.data.folder import locked
from pal_audio.errors import PalError

RECIPES = Path(__file__).parents[2] / "recipes" / "lab"
FAILED, TIME_IS_UP = 1, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `run` where none is named.

    Returns:
        0: all is done. 1: a step failed. 2: the input is wrong. 3: the time is up or a signal came; the same command goes on.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].startswith("--") and words[0] not in ("--help", "-h"):
        words.insert(0, "run")
    options = _parser().parse_args(words)
    try:
        return int(options.command(options))
    except PalError as error:
        print(f"lab: error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    flow = _flow(options)
    model = options.bundle and Path(os.path.abspath(options.bundle))  # without `..`: a folder beside it is made too
    if options.as_scored and model is None:
        raise PalError("--as-scored says which model --bundle MODEL writes; give that too")
    if model is not None and is_made(flow, model, not options.as_scored):
        model = None
    if model is not None:
        check_target(model)
        if not options.as_scored and not is_made(flow, scored_folder(model), retrained=False):
            check_target(scored_folder(model))
    elsewhere.check(flow)
    rates = {} if options.rates is None else rates_of(flow, options.rates)  # refused before OUT is begun
    flow.check()
    with locked(flow.out):
        deadline = None if options.minutes is None else started + 60 * options.minutes
        if options.rates is not None:  # before models: an arm that would try them may need others
            print(f"rates taken from {options.rates}: {', '.join(take(rates)) or 'none, this lab has its own'}", flush=True)
        retrains = model is not None and not options.as_scored
        if options.models is not None and (taken := take_models(flow, options.models, bundle=retrains)):
            print(f"taken from {options.models}: {', '.join(taken)}", flush=True)
        steps = grid_steps(flow)
        if model is None:
            return run_steps(steps, flow, deadline)
        early = [scored_step(flow, model)] if options.as_scored else early_steps(flow, model)
        more = not options.as_scored and all(step.name != "bundle" for step in early)
        status = run_steps(_beside(steps, early), flow, deadline, more)
        return status or (run_steps(bundle(flow, model), flow, deadline) if more else 0)


def _beside(steps: list[Step], early: list[Step]) -> list[Step]:
    """A grid's steps with those of the bundle: its sound before any arm, all from the scored model on behind the best arm."""
    begun = next((number for number, step in enumerate(steps) if step.kind in ("train", "arm")), len(steps))
    known = next((number for number, step in enumerate(steps) if step.name == "best"), len(steps)) + 1
    sound = next((number for number, step in enumerate(early) if step.name == "as-scored"), len(early))
    return [*steps[:begun], *early[:sound], *steps[begun:known], *early[sound:], *steps[known:]]


def run_steps(steps: list[Step], flow: Flow, deadline: float | None, more: bool = False) -> int:
    """Run steps until they are done or the time is up; SIGINT and SIGTERM end it as the time does.

    Args:
        steps, flow: what is to do.
        deadline: see `Runner`.
        more: others follow, so that being told to stop counts although these steps are done.

    Returns:
        The exit status.
    """
    if len(flow.gpus) > 1:
        print(f"GPUs: {', '.join(flow.gpus)}; each process sees one of them", flush=True)
    say = partial(print, flush=True)
    runner = Runner(steps, flow.out, flow.jobs, deadline, flow.device == "cpu", say, flow.gpus)
    before = {name: signal.signal(name, lambda *_: runner.stop()) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        if runner.run():
            print("all steps are done")
            return TIME_IS_UP if more and runner.stopped else 0
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    show(steps, flow.jobs)
    return FAILED if runner.failed else TIME_IS_UP


def show(steps: Sequence[Step], jobs: int) -> None:
    """Print what is done and what is left, by kinds of steps."""
    kinds: dict[str, list[Step]] = {}
    for step in steps:
        kinds.setdefault(step.kind, []).append(step)
    for kind, members in kinds.items():
        left = [step.name for step in members if not step.done]
        print(f"{kind:24s} {len(members) - len(left)} of {len(members)} done" + (f"; left: {', '.join(left)}" if left else ""))
    print(time_left(steps, jobs))


def _status(options: argparse.Namespace) -> int:
    flow = flow_in(options.out.absolute())
    show(grid_steps(flow), flow.jobs)
    return 0


def _elsewhere(options: argparse.Namespace) -> int:
    print(render(options.folder, options.soundfont))
    return 0


def _report(options: argparse.Namespace) -> int:
    print(write_report(options.out, options.page))
    return 0


def _pack(options: argparse.Namespace) -> int:
    for line in pack(options.out.absolute(), options.folder):
        print(line)
    return 0


def _bundle(options: argparse.Namespace) -> int:
    flow = flow_in(options.out.absolute())
    with locked(flow.out):
        steps = (as_scored if options.as_scored else bundle)(flow, options.model.absolute())
        deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
        return run_steps(steps, flow, deadline)


def _flow(options: argparse.Namespace) -> Flow:
    tiny = options.tiny
    arms = options.arms.split(",") if options.arms else TINY_ARMS if tiny else None
    seeds = tuple(range(options.seeds)) if options.seeds else SEEDS[:1] if tiny else SEEDS
    tried = [float(word) for word in options.factors.split(",")] if options.factors else FACTORS[1:] if tiny else FACTORS
    device = "cpu" if tiny and options.device == "auto" else options.device
    shelf = Shelf(options.recipes, tiny, options.steps, options.compile)
    return Flow(
        options.root, options.out.absolute(), shelf, arms, seeds, tuple(tried), options.jobs, device,
        "float32" if tiny else "bfloat16", 16 if tiny else 128, 1 if tiny else num_cores(), options.questions, options.pace,
        options.gpus, options.elsewhere and options.elsewhere.absolute(),
        None if options.best is None else options.best.split(","), options.wav,
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab", description=benchmarks.lab.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="do what is not done yet")
    run.add_argument("--root", type=Path, required=True, help="folder with the recordings (esc10, fsdd, gm_notes)")
    run.add_argument("--out", type=Path, required=True, help="a new folder, or one to go on in")
    run.add_argument("--recipes", type=Path, default=RECIPES, help="folder of the lab's recipes")
    run.add_argument("--arms", help="names with commas, also of ablations; without it all, and ablations with one seed")
    run.add_argument("--seeds", type=int, help=f"of each arm, from 0 ({len(SEEDS)})")
    run.add_argument("--factors", help=f"of learning rates, with commas ({','.join(f'{factor:g}' for factor in FACTORS)})")
    run.add_argument("--steps", type=int, help="of each stage of an arm; otherwise the recipe's own number")
    run.add_argument("--questions", type=int, default=600, help="at most so many of a task are asked (600)")
    run.add_argument("--device", default="auto", help=", ".join(DEVICES))
    run.add_argument("--jobs", type=int, default=1, help="steps at once; on CUDA each takes the GPU of fewest steps")
    run.add_argument("--gpus", type=int, metavar="N", help="the first N of those that can be seen; otherwise all")
    run.add_argument("--minutes", type=float, help="then save and stop; the same command goes on")
    run.add_argument("--pace", type=int, default=0, metavar="STEPS", help="also a run of each arm alone, of so many steps")
    run.add_argument("--tiny", action="store_true", help="two arms of tiny models, in about a minute on two cores")
    run.add_argument("--wav", action="store_true", help="compose scenes as WAV: quicker to read, 2.3 times the room")
    run.add_argument("--compile", action="store_true", help="train arms under `compile: true`")
    run.add_argument(
        "--bundle",
        type=Path,
        metavar="MODEL",
        help="then also `bundle`, beside the arms as far as it can be; before it the scored run in MODEL-as-scored",
    )
    run.add_argument("--as-scored", action="store_true", help="--bundle as soon as the best arm is known: its first run as it is")
    run.add_argument("--best", metavar="ARMS", help="choose the best arm from these alone; nothing of it waits for the others")
    run.add_argument(
        "--models", type=Path, metavar="FOLDER", help="take language model and encoders from another OUT, or from `pack`"
    )
    run.add_argument("--rates", type=Path, metavar="FOLDER", help="take learning rates as another lab's sweep chose them")
    run.add_argument("--elsewhere", type=Path, metavar="FOLDER", help="sound of `elsewhere` that the best arm is asked about too")
    run.set_defaults(command=_run)
    other = commands.add_parser("elsewhere", help="render sound by other voices and another soundfont, to be asked about")
    other.add_argument("folder", type=Path, help="a new folder")
    other.add_argument("--soundfont", type=Path, default=SOUNDFONT, help=f"General MIDI in .sf2 ({SOUNDFONT})")
    other.set_defaults(command=_elsewhere)
    for name, command, text in (
        ("status", _status, "what is done and what is left"),
        ("report", _report, "tables and pictures"),
        ("pack", _pack, "copy what is small into a folder"),
        ("bundle", _bundle, "train the best arm again on all development data and write the model"),
    ):
        parts = commands.add_parser(name, help=text)
        parts.add_argument("out", type=Path)
        parts.set_defaults(command=command)
        if name == "report":
            parts.add_argument("--page", type=Path, help="a page with the markers, which the report is put between")
        if name == "pack":
            parts.add_argument("folder", type=Path)
        if name == "bundle":
            parts.add_argument("model", type=Path)
            parts.add_argument(
                "--as-scored", action="store_true", help="no training: the best arm's first run, whose scores are its own"
            )
            parts.add_argument("--minutes", type=float)
    return parser


if __name__ == "__main__":
    sys.exit(main())
