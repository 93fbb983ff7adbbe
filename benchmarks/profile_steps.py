"""Where a step's time goes: kernels of the cases of `pal bench train` and `infer` by kind, beside wall time and floor.

    python -m benchmarks.profile_steps train --integrations text,plits,lal --audio-tokens 1024 --compile model --out DIR
    python -m benchmarks.profile_steps infer --integrations text,lal --batch 1,16 --audio-tokens 1500 --decode compiled --out DIR

What the benchmark times is what is profiled: `Recorder.timed` stands in for `measure.timed`, times most of the calls as ever
and profiles the last ones. A row has phases: the training step; the first token, the same with ready memory, a decoded token.
Wall time is the median without the profiler; busy is when at least one kernel ran, a mean of the profiled calls. On the CPU
operators stand for kernels, with the time that they spend themselves.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from benchmarks.kernel_kinds import events_of, summary
from torch.profiler import ProfilerActivity, profile

from pal_audio.bench import ahead, infer, measure, shapes, train
from pal_audio.bench.case import Case
from pal_audio.bench.estimate import Way, time_features
from pal_audio.bench.run import failures, find_device, guarded
from pal_audio.bench.store import Row
from pal_audio.bench.table import header_lines
from pal_audio.commands.bench import read_sweep
from pal_audio.errors import PalError
from pal_audio.integration import cost
from pal_audio.model.prefill import WAYS

NAME_WIDTH = 110
PHASES = ("step", "ready_first_token", "first_token", "token")
SETUP = ("llm", "encoder", "precision", "compile")
LISTS = ("integrations", "audio_tokens", "text_tokens", "batch", "projector", "layers")


class Recorder:
    """Stands in for `measure.timed`. Of `num` calls the last `num_kept` are the profiler's, so no more are made than asked for.

    Attributes:
        phases: see `summary`, by the median that the benchmark's row will hold.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps, self.num_kept = num_steps, num_steps + 1
        self.phases: dict[float | None, dict[str, Any]] = {}
        self._timed = measure.timed

    def timed(
        self, call: Callable[[], Any], num: int, device: torch.device, before: Callable[[], Any] = lambda: None
    ) -> measure.Times:
        times = self._timed(call, num - self.num_kept, device, before)
        activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU

        def profiled(steps: int) -> profile:
            with profile(activities=[activity]) as found:
                for _ in range(steps):
                    before()
                    call()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            return found

        profiled(1)  # the profiler itself starts slowly
        events = events_of(profiled(self.num_steps), device)
        if not events:
            raise RuntimeError("the profiler saw no kernel; is CUPTI there?")
        self.phases[times.median_s] = summary(events, self.num_steps, times.median_s)
        return times


def floor_parts(case: Case, row: Row, phase: str) -> dict[str, float]:
    """Seconds of a phase's operations at the matrix rate and of its bytes at the copy bandwidth; the floor is their sum."""
    llm, work, rates = case.llm, case.work(), row["rates"]
    flops_s, bandwidth = rates["matrix_flops"], rates["bandwidth_bytes"]
    if phase == "step":  # their sum is the row's `floor_s`
        way = Way(case.setup.precision, case.setup.compile != "none")
        linear, attention, moved = time_features(llm, work, way)
        return {"matrix products": linear / flops_s, "attention": attention / flops_s, "bytes": moved / bandwidth}
    if phase == "token":
        return {"bytes": row["byte_bound_s"]}
    parts = cost.forward_flops(llm, replace(work, logits=1))
    moved = row["weights_bytes"]
    if phase == "ready_first_token":
        parts = {name: parts[name] for name in ("layers", "attention", "logits", "blocks")}
        moved = llm.num_parameters * work.element_bytes + cost.memory_bytes(llm, work, case.extra["clips"] or None)
    attention = parts.pop("attention")
    return {"matrix products": sum(parts.values()) / flops_s, "attention": attention / flops_s, "bytes": moved / bandwidth}


def profiled_row(case: Case, device: torch.device, calls: dict[str, int], num_steps: int, rates: dict[str, float]) -> Row:
    """The benchmark's row of a case, and `phases`: a `summary` and `floor` (`floor_parts`) each."""
    recorder = Recorder(num_steps)
    with mock.patch.object(measure, "timed", recorder.timed):
        if "steps" in calls:
            row = train.measure_case(case, device, calls["steps"] + recorder.num_kept, calls["warmup"], rates)
        else:
            row = infer.measure_case(case, device, calls["repeats"] + recorder.num_kept, calls["warmup"], rates)
    found = {phase: recorder.phases[row[f"{phase}_s"]] for phase in PHASES if f"{phase}_s" in row}
    return row | {"phases": {phase: values | {"floor": floor_parts(case, row, phase)} for phase, values in found.items()}}


def phase_line(title: str, phase: str, values: dict[str, Any]) -> str:
    """One line: wall, busy, idle, kernels, floor."""
    wall_s, floor_s = values["wall_s"], sum(values["floor"].values())
    return (
        f"{title}, {phase}: wall {wall_s * 1e3:.2f} ms, busy {values['busy_s'] * 1e3:.2f} ms, idle {values['idle_share']:.0%}, "
        f"{values['num_kernels']:.0f} kernels, floor {floor_s * 1e3:.2f} ms ({floor_s / wall_s:.0%})"
    )


def phase_lines(title: str, phase: str, values: dict[str, Any]) -> list[str]:
    """The table of a phase: kinds from the heaviest on, the floor by part, the heaviest kernels; milliseconds of a step."""
    lines = [phase_line(title, phase, values), f"  {'ms':>8} {'share':>6} {'number':>7}  kind"]
    for kind, sums in sorted(values["kinds"].items(), key=lambda item: -item[1]["seconds"]):
        share = sums["seconds"] / values["kernel_s"] if values["kernel_s"] else 0.0
        lines.append(f"  {sums['seconds'] * 1e3:8.3f} {share:6.1%} {sums['num']:7.0f}  {kind}")
    lines.append("  floor: " + ", ".join(f"{part} {seconds * 1e3:.2f}" for part, seconds in values["floor"].items()))
    for kernel in values["heaviest"]:
        name = re.sub(r"^void |at::native::|\(anonymous namespace\)::", "", kernel["name"])[:NAME_WIDTH]
        lines.append(f"  {kernel['seconds'] * 1e3:8.3f} {'':6} {kernel['num']:7.0f}  {name}")
    return [*lines, ""]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PalError(message)  # one line, without the usage


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(description="kernels of a step by kind; options are those of `pal bench`")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, numbers in {"train": {"steps": 10}, "infer": {"repeats": 5, "new-tokens": 24}}.items():
        options = verbs.add_parser(verb)
        for name in (*SETUP, *LISTS, "device"):
            options.add_argument(f"--{name.replace('_', '-')}")
        options.add_argument("--set", action="append", metavar="KEY=VALUE", help="such as setup.compile_mode=reduce-overhead")
        options.add_argument("--sweep", type=Path)
        options.add_argument("--out", type=Path)
        options.add_argument("--compile-ahead", type=int, default=0)
        for name, default in {**numbers, "warmup": 4, "profiled": 4}.items():
            options.add_argument(f"--{name}", type=int, default=default)
        if verb == "infer":
            options.add_argument("--decode", default="compiled")
            options.add_argument("--prefill", default="plain", choices=WAYS)
            options.add_argument("--one-clip", action="store_true")
    chosen = parser.parse_args(arguments)
    for name in ("steps", "repeats", "new_tokens", "warmup", "profiled"):
        if getattr(chosen, name, 1) < 1:
            raise PalError(f"--{name.replace('_', '-')} {getattr(chosen, name)}: at least one")
    if chosen.compile_ahead < 0:
        raise PalError(f"--compile-ahead {chosen.compile_ahead}: a number of processes, or 0")
    if chosen.sweep is not None and not chosen.sweep.is_file():
        raise PalError(f"--sweep {chosen.sweep}: no such file")
    if chosen.out is not None and chosen.out.exists() and not chosen.out.is_dir():
        raise PalError(f"--out {chosen.out} is a file; give a folder")
    return chosen


def find_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that were named, each once; other than in `pal bench`, none is added to compare with."""
    setup, lists = ({name: getattr(options, name) for name in names} for names in (SETUP, LISTS))
    plan, extra = read_sweep(options.sweep, setup, lists, options.set), {}
    if options.verb == "infer":
        decoders = {name: way for name, way in infer.DECODERS.items() if name != "generate"}  # it is a difference of times
        shapes.find(options.decode, decoders, "decode")
        new_tokens = options.new_tokens + options.profiled + 1
        extra = {"new_tokens": new_tokens, "clips": int(options.one_clip), "decode": options.decode, "prefill": options.prefill}
    cases = [case for group in plan.groups(extra) for case in group if case.integration in plan.integrations]
    return list({case.key: case for case in cases}.values())


def main(arguments: list[str] | None = None) -> list[Row]:
    options = parse(arguments)
    cases, device = find_cases(options), find_device(options.device)
    dtype = torch.float32 if cases[0].setup.precision == "float32" else torch.bfloat16
    rates = {"matrix_flops": measure.matrix_rate(device, dtype), "bandwidth_bytes": measure.bandwidth(device)}
    command = shlex.join(["python", "-m", "benchmarks.profile_steps", *(sys.argv[1:] if arguments is None else arguments)])
    header = {"hardware": measure.hardware(device), "rates": rates, "command": command, "date": measure.now()}
    if options.compile_ahead:
        ahead.compile_ahead(options.verb, cases, device, options.compile_ahead, lambda line: print(line, file=sys.stderr))
    names = ("steps", "warmup") if options.verb == "train" else ("repeats", "warmup")
    calls = {name: getattr(options, name) for name in names}
    rows: list[Row] = []
    text, ends = [*header_lines(header), ""], []
    print("\n".join(text))
    for case in cases:
        print(f"profile_steps: {case.title()}", file=sys.stderr, flush=True)
        row = guarded(partial(profiled_row, case, device, calls, options.profiled, rates), device)
        rows.append({"title": case.title(), "case": case.model_dump(mode="json")} | row)
        phases = row.get("phases", {}).items()
        lines = [line for phase, values in phases for line in phase_lines(case.title(), phase, values)]
        ends += [phase_line(case.title(), *item) for item in phases] or [f"{case.title()}: {row['error']}"]
        print("\n".join(lines), flush=True)
        text += lines
        if options.out is not None:  # after each case, so that what stops a later one loses nothing
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "profile.json").write_text(json.dumps({"header": header, "rows": rows}, indent=1) + "\n")
            (options.out / "profile.txt").write_text("\n".join([*text, *ends]) + "\n")
    print("\n".join(ends))
    if failures([rows]):
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    # As torch's profiler sets beside graphs that torch.compile captures: CUPTI may not survive a second start beside graphs.
    os.environ.update(DISABLE_CUPTI_LAZY_REINIT="1", TEARDOWN_CUPTI="0")
    try:
        main()
    except PalError as error:
        sys.exit(f"profile_steps: error: {error}")
