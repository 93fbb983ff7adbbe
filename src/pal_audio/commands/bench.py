"""`pal bench`: what training and inference cost."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from pal_audio.errors import PalError

if TYPE_CHECKING:
    from pal_audio.bench.case import Sweep
    from pal_audio.bench.store import Row

app = typer.Typer(help="Measures and predicts time and memory.", epilog="Example: pal bench train --audio-tokens 512,1024")

SweepOption = Annotated[Path | None, typer.Option(help="YAML with the settings; options on the command line change it.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder for rows, results and picture. Rows in it are kept, not measured again.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
LlmOption = Annotated[str | None, typer.Option(help="Shape by name, such as llama-3.2-1b or qwen2.5-7b.")]
EncoderOption = Annotated[str | None, typer.Option(help="frames (given), whisper-base, whisper-small, whisper-large-v3 or conv.")]
IntegrationsOption = Annotated[str | None, typer.Option(help="Comma-separated; text, plits and lal are always there.")]
ListOption = Annotated[str | None, typer.Option(help="Comma-separated; every combination is measured.")]
PrecisionOption = Annotated[str | None, typer.Option(help="bf16 (weights too), autocast or float32.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another setting, such as setup.kernel=eager; repeatable.")
]


@app.command("train", epilog="Example: pal bench train --llm tiny-llama --encoder tiny-frames --audio-tokens 16,32 --batch 2")
def train(
    sweep: SweepOption = None,
    llm: LlmOption = None,
    encoder: EncoderOption = None,
    integrations: IntegrationsOption = None,
    audio_tokens: ListOption = None,
    text_tokens: ListOption = None,
    batch: ListOption = None,
    projector: ListOption = None,
    layers: Annotated[str | None, typer.Option(help="Semicolon-separated: all, from:k, every:n.")] = None,
    precision: PrecisionOption = None,
    compile_: Annotated[str | None, typer.Option("--compile", help="none, decoder or step.")] = None,
    checkpointing: Annotated[bool | None, typer.Option("--checkpointing/--no-checkpointing", help="Compute layers twice.")] = None,
    packed: Annotated[bool | None, typer.Option("--packed/--no-packed", help="The batch as one row without padding.")] = None,
    frozen_llm: Annotated[bool | None, typer.Option("--frozen-llm/--no-frozen-llm", help="The LLM does not learn.")] = None,
    settings: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of a case.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 5,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measures training steps of text, PLITS, LAL and PAL side by side, with random weights of real shapes."""
    setup = {"llm": llm, "encoder": encoder, "precision": precision, "compile": compile_, "checkpointing": checkpointing,
             "packed": packed, "frozen_llm": frozen_llm}  # fmt: skip
    lists = {"integrations": integrations, "audio_tokens": audio_tokens, "text_tokens": text_tokens, "batch": batch,
             "projector": projector, "layers": layers and layers.replace(";", ",")}  # fmt: skip
    plan = read_sweep(sweep, setup, lists, settings)
    from pal_audio.bench import table
    from pal_audio.bench.run import find_device, run
    from pal_audio.bench.train import measure_case

    groups = plan.groups()
    header, rows = run(
        "train", groups, lambda case, where, rates: measure_case(case, where, steps, warmup, rates), find_device(device), out,
        _command(), _progress,
    )  # fmt: skip
    if out is not None:
        table.picture(rows, out / "train.png", "step_s", "peak_bytes", "training step")
    _show(header, rows, as_json, table.print_train)


def _show(header: "Row", rows: "list[list[Row]]", as_json: bool, printer: Any) -> None:
    from rich.console import Console

    from pal_audio.bench import table
    from pal_audio.bench.run import failures

    if as_json:
        print(json.dumps({"header": header, "groups": rows}))
    else:
        console = Console(width=None if sys.stdout.isatty() else 200)
        for line in table.header_lines(header):
            console.print(line, markup=False, highlight=False)
        printer(rows, console)
    failed = failures(rows)
    if failed:
        raise RuntimeError(f"{len(failed)} cases failed, the first is {failed[0]['title']}: {failed[0]['error']}")


def read_sweep(
    path: Path | None, setup: dict[str, Any], lists: dict[str, str | None], settings: Sequence[str] | None
) -> "Sweep":
    """The sweep of a file, changed by options.

    Raises:
        PalError: it cannot be read, or a setting is wrong.
    """
    from pydantic import TypeAdapter

    from pal_audio.bench.case import Sweep
    from pal_audio.commands.train import checked_settings
    from pal_audio.config import parse_config

    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise PalError(f"{path}: no YAML: {error}") from error
    if not isinstance(content, dict):
        raise PalError(f"{path}: a sweep is a mapping of settings")
    content["setup"] = dict(content.get("setup") or {}) | {name: value for name, value in setup.items() if value is not None}
    for name, text in lists.items():
        if text is not None:
            content[name] = [yaml.safe_load(part) for part in text.split(",")]
    for setting in checked_settings(list(settings or [])):
        key, _, value = setting.partition("=")
        place, _, name = key.rpartition(".")
        if place not in ("", "setup"):
            raise PalError(f"--set {setting}: write setup.NAME=VALUE or NAME=VALUE")
        (content["setup"] if place else content)[name] = yaml.safe_load(value)
    return parse_config(TypeAdapter(Sweep), content, "bench")


def _command() -> str:
    return shlex.join(["pal", *sys.argv[1:]])


def _progress(title: str) -> None:
    print(f"pal bench: {title}", file=sys.stderr, flush=True)
