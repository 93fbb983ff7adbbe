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
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for rows, results and picture. What it holds is not measured again.")
]
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

AheadOption = Annotated[int, typer.Option("--compile-ahead", min=0, metavar="N", help="First compile all cases, N at once.")]


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
    layers: Annotated[str | None, typer.Option(help="Comma-separated: all, from:k, every:n.")] = None,
    precision: PrecisionOption = None,
    compile_: Annotated[str | None, typer.Option("--compile", help="none, model or step.")] = None,
    checkpointing: Annotated[
        bool | None, typer.Option("--checkpointing/--no-checkpointing", help="Compute layers twice.")
    ] = None,
    packed: Annotated[bool | None, typer.Option("--packed/--no-packed", help="The batch as one row without padding.")] = None,
    frozen_llm: Annotated[bool | None, typer.Option("--frozen-llm/--no-frozen-llm", help="The LLM does not learn.")] = None,
    settings: SetOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of a case.")] = 20,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before them.")] = 5,
    compile_ahead: AheadOption = 0,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measures training steps of text, PLITS, LAL and PAL side by side, with random weights of real shapes."""
    setup = {"llm": llm, "encoder": encoder, "precision": precision, "compile": compile_, "checkpointing": checkpointing,
             "packed": packed, "frozen_llm": frozen_llm}  # fmt: skip
    lists = {"integrations": integrations, "audio_tokens": audio_tokens, "text_tokens": text_tokens, "batch": batch,
             "projector": projector, "layers": layers}  # fmt: skip
    plan = read_sweep(sweep, setup, lists, settings)
    from pal_audio.bench import table
    from pal_audio.bench.run import find_device, run
    from pal_audio.bench.train import measure_case

    groups = plan.groups()
    header, rows = run(
        "train", groups, lambda case, where, rates: measure_case(case, where, steps, warmup, rates), find_device(device), out,
        _command(), _progress, compile_ahead,
    )  # fmt: skip
    if out is not None:
        table.picture(rows, out / "train.png", "step_s", "peak_bytes", "training step")
    _show(header, rows, as_json, table.print_train)


@app.command("infer", epilog="Example: pal bench infer --llm tiny-llama --encoder tiny-frames --audio-tokens 32 --batch 1,4")
def infer(
    sweep: SweepOption = None,
    llm: LlmOption = None,
    encoder: EncoderOption = None,
    integrations: IntegrationsOption = None,
    audio_tokens: ListOption = None,
    text_tokens: ListOption = None,
    batch: ListOption = None,
    precision: PrecisionOption = None,
    settings: SetOption = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded after the first.")] = 32,
    one_clip: Annotated[bool, typer.Option("--one-clip", help="All rows ask about one clip.")] = False,
    chunk_tokens: Annotated[int, typer.Option(min=0, help="Encode clips in chunks of so many audio tokens; 0: at once.")] = 0,
    decode: Annotated[str, typer.Option(help="Way to decode: generate, a bare loop (loop) or a compiled one.")] = "generate",
    prefill: Annotated[
        str, typer.Option(help="With --decode compiled: a plain prefill, a captured or a compiled one.")
    ] = "plain",
    repeats: Annotated[int, typer.Option(min=1, help="Measured calls of each kind.")] = 5,
    warmup: Annotated[int, typer.Option(min=1, help="Calls before them.")] = 2,
    compile_ahead: AheadOption = 0,
    device: DeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measures the first token, decoding and memory of text, PLITS, LAL and PAL side by side."""
    setup = {"llm": llm, "encoder": encoder, "precision": precision}
    lists = {"integrations": integrations, "audio_tokens": audio_tokens, "text_tokens": text_tokens, "batch": batch}
    plan = read_sweep(sweep, setup, lists, settings)
    from pal_audio.bench import shapes, table
    from pal_audio.bench.infer import DECODERS, measure_case
    from pal_audio.bench.run import find_device, run
    from pal_audio.model.prefill import WAYS

    shapes.find(decode, DECODERS, "decode")
    shapes.find(prefill, dict.fromkeys(WAYS), "prefill")
    if prefill != "plain" and not decode.startswith("compiled"):
        raise PalError(f"--prefill {prefill}: it is the compiled decoder's; add --decode compiled")
    if chunk_tokens and not shapes.ENCODERS[plan.setup.encoder].given:
        raise PalError("--chunk-tokens: chunks are of given frames; take the encoder frames")
    if chunk_tokens and "pal" in plan.integrations:
        raise PalError("--chunk-tokens: PAL's summary reads whole clips; name --integrations lal")
    extra = {"new_tokens": new_tokens, "clips": int(one_clip), "decode": decode, "chunk_tokens": chunk_tokens}
    groups = plan.groups(extra if prefill == "plain" else extra | {"prefill": prefill})
    header, rows = run(
        "infer", groups, lambda case, where, rates: measure_case(case, where, repeats, warmup, rates), find_device(device), out,
        _command(), _progress, compile_ahead,
    )  # fmt: skip
    if out is not None:
        table.picture(rows, out / "infer.png", "first_token_s", "rest_bytes", "first token")
    _show(header, rows, as_json, table.print_infer)


@app.command("plan", epilog="Example: pal bench plan --llm llama-3.2-1b --audio-tokens 750 --batch 16 --card 24gb")
def plan(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe; otherwise say --llm.")] = None,
    stage: Annotated[int, typer.Option(min=0, help="Of the recipe, from 0.")] = 0,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Length of a clip; 30 where nothing is said.")] = None,
    llm: LlmOption = None,
    encoder: EncoderOption = None,
    audio_tokens: Annotated[int | None, typer.Option(min=1, help="Of a clip; 25 a second without a recipe.")] = None,
    text_tokens: Annotated[int, typer.Option(min=4, help="Of a row.")] = 64,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows.")] = None,
    projector: Annotated[str | None, typer.Option(help="per_layer, shared or low_rank:R.")] = None,
    precision: PrecisionOption = None,
    compile_: Annotated[str | None, typer.Option("--compile", help="none, model or step.")] = None,
    settings: SetOption = None,
    card: Annotated[str, typer.Option(help="h200, h100, a100-80, a100-40 or 24gb.")] = "h200",
    check: Annotated[list[Path] | None, typer.Option(help="results.json of `pal bench train`, to compare with.")] = None,
    fit: Annotated[list[Path] | None, typer.Option(help="results.json to fit the constants on; prints them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Predicts operations, memory and time of all integrations side by side, and the largest batch that fits a card."""
    from rich.console import Console

    from pal_audio.bench import estimate, shapes, table
    from pal_audio.bench import fit as fitting
    from pal_audio.bench import plan as planning
    from pal_audio.bench.store import read_results

    console = Console(width=None if sys.stdout.isatty() else 200)
    if fit or check:
        if fit and check:
            raise PalError("--fit and --check exclude each other: fit on some rows, then check on others")
        rows = [row for path in fit or check or [] for row in read_results(path)]
        if not fitting.usable(rows):
            raise PalError("no training row with numbers there: the plan is compared with results of `pal bench train`")
        if fit:
            for name, constants in fitting.fit(rows, rows[0]["hardware"]["device"]).items():
                print(f"    {name!r}: {constants!r},")
            return
        checked = fitting.check(rows)
        outcome = fitting.summary(checked)
        if as_json:
            print(json.dumps({"summary": outcome, "rows": checked}))
        else:
            table.print_check(checked, outcome, console)
        return
    if seconds is not None and audio_tokens is not None:
        raise PalError("--seconds and --audio-tokens exclude each other: both say how long a clip is")
    seconds = 30.0 if seconds is None else seconds
    device = shapes.find(card, estimate.CARDS, "card")
    if recipe is not None:
        from pal_audio.commands import recipes
        from pal_audio.training.recipe import load_recipe

        stray = {"--llm": llm, "--encoder": encoder, "--projector": projector, "--precision": precision, "--compile": compile_}
        for option, value in stray.items():
            if value is not None:
                raise PalError(f"{option}: the recipe says it; use --set KEY=VALUE, as in `pal train`")
        found = load_recipe(recipes.find(recipe), settings)
        planned = planning.from_recipe(found, stage, batch, text_tokens, seconds, audio_tokens)
    else:
        setup = {"llm": llm, "encoder": encoder, "precision": precision, "compile": compile_}
        sweep = read_sweep(None, setup, {"projector": projector}, settings)
        case = sweep.groups()[0][-1].model_dump()
        sizes = {"audio_tokens": audio_tokens or round(25 * seconds), "text_tokens": text_tokens, "batch": batch or 16}
        from pal_audio.bench.case import Case

        planned = planning.from_case(Case.model_validate(case | sizes))
    predicted = planning.rows(planned, device)
    if as_json:
        print(json.dumps({"card": card, "notes": planned.notes, "rows": predicted}))
        return
    table.print_plan(predicted, console)
    for note in planned.notes:
        console.print(note, markup=False)


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
        is_mistake = all(row["error"].startswith("PalError: ") for row in failed)
        why = failed[0]["error"].removeprefix("PalError: ")
        told = f"{len(failed)} cases failed, the first is {failed[0]['title']}: {why}"
        raise PalError(told) if is_mistake else RuntimeError(told)


def read_sweep(path: Path | None, setup: dict[str, Any], lists: dict[str, str | None], settings: Sequence[str] | None) -> "Sweep":
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
