"""Rows as people read them: a table, and a picture of cost against audio length."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pal_audio.bench.store import Row

GIB = 2**30
COLOURS = {"text": "#777777", "plits": "#c0392b", "lal": "#1f77b4", "pal": "#2e8b57", "flamingo": "#8e44ad"}


def header_lines(header: Row) -> list[str]:
    """Hardware, versions, command and date of a call."""
    machine = header["hardware"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "cuda", "transformers", "python", "pal_audio", "commit"))
    lines = [f"{machine['device']}; {versions}", f"{header['date']}  {header['command']}"]
    if "rates" in header:
        rates = header["rates"]
        lines.append(
            f"measured here: {rates['matrix_flops'] / 1e12:.2f} TFLOP/s (matrix product of the rows' precision), "
            f"{rates['bandwidth_bytes'] / 1e9:.0f} GB/s (copy)"
        )
    return lines


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.3g}"


def gib(value: float | None) -> str:
    return "not measured" if value is None else f"{value / GIB:.2f}"


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def print_train(groups: Sequence[Sequence[Row]], console: Console) -> None:
    """One table of all groups; ratios are to the PLITS and text rows of the same group."""
    table = Table("case", "step ms (p10-p90)", "tok/s", "TFLOP/s", "of rate", "of floor", "peak GiB", "weights", "grads",
                  "optim.", "rest", "speed/PLITS (bound)", "rest/PLITS", "speed/text (bound)")  # fmt: skip
    for group in groups:
        for row in group:
            title = row["title"]
            if row["error"]:
                table.add_row(title, row["error"])
                continue
            ratios = row["ratios"]
            spread = f"{milliseconds(row['times']['p10_s'])}-{milliseconds(row['times']['p90_s'])}"
            table.add_row(
                title,
                f"{milliseconds(row['step_s'])} ({spread})",
                f"{row['tokens_per_s']:.0f}",
                f"{row['achieved_flops'] / 1e12:.3g}",
                f"{row['matrix_share']:.0%}",
                f"{row['floor_s'] / row['step_s']:.0%}",
                *(gib(row[f"{part}_bytes"]) for part in ("peak", "weights", "gradients", "optimizer", "rest")),
                f"{times(ratios['step_plits'])} ({times(ratios['flops_plits'])})",
                times(ratios["rest_plits"]),
                f"{times(ratios['step_text'])} ({times(ratios['flops_text'])})",
            )
        table.add_section()
    console.print(table)


def print_infer(groups: Sequence[Sequence[Row]], console: Console) -> None:
    """One table of all groups; ratios are to the PLITS and text rows of the same group."""
    table = Table("case", "first token ms", "with ready memory", "ms a token", "of byte bound", "tok/s", "above weights GiB",
                  "decoding", "memory GiB", "text cache", "ready speed/text", "decode speed/text", "decoding/PLITS")  # fmt: skip
    for group in groups:
        for row in group:
            if row["error"]:
                table.add_row(row["title"], row["error"])
                continue
            ratios = row["ratios"]
            table.add_row(
                row["title"],
                milliseconds(row["first_token_s"]),
                milliseconds(row["ready_first_token_s"]),
                milliseconds(row["token_s"]),
                f"{row['byte_bound_s'] / row['token_s']:.0%}" if row["token_s"] else "-",
                f"{row['tokens_per_s']:.0f}" if row["token_s"] else "-",
                *(gib(row[name]) for name in ("rest_bytes", "resident_rest_bytes", "memory_bytes", "kv_bytes")),
                *(times(ratios[name]) for name in ("ready_first_token_text", "token_text", "resident_rest_plits")),
            )
        table.add_section()
    console.print(table)


def picture(groups: Sequence[Sequence[Row]], path: Path, time: str, memory: str, what: str) -> bool:
    """Cost against audio length, every integration in one picture: time and memory side by side.

    Args:
        groups: rows with ratios.
        path: a PNG.
        time, memory: names of the row's values.
        what: of the time axis.

    Returns:
        False where matplotlib is missing, or where no row has a number.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines: dict[str, dict[int, Row]] = {}
    lengths = sorted({row["case"]["audio_tokens"] for group in groups for row in group if row["case"]["audio_tokens"]})
    rows = [row for group in groups for row in group]
    varied = [name for name in ("batch", "text_tokens") if len({row["case"][name] for row in rows}) > 1]
    for group in groups:
        length = max(row["case"]["audio_tokens"] for row in group)
        for row in group:
            label = label_of(row, varied)
            if not row["error"]:
                lines.setdefault(label, {})[length] = row
    if not lines or not lengths:
        return False
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, name, unit, scale in ((axes[0], time, f"{what}, ms", 1e3), (axes[1], memory, "peak memory, GiB", 1 / GIB)):
        for label, by_length in sorted(lines.items()):
            points = [(length, row[name] * scale) for length, row in sorted(by_length.items()) if row.get(name)]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=label, color=COLOURS.get(label))
        axis.set(xlabel="audio tokens of a clip", ylabel=unit)
        axis.grid(alpha=0.3)
        if not axis.lines:
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def label_of(row: Row, varied: Sequence[str]) -> str:
    """What tells lines of a picture apart: integration, what LAL is made of where it is not the default, what the rows vary."""
    case = row["case"]
    own = [case["integration"]]
    if case["integration"] in ("lal", "pal") and (case["projector"], case["layers"]) != ("per_layer", "all"):
        own += [case["projector"], case["layers"]]
    if case["integration"] == "flamingo" and case["layers"] != "all":
        own.append(case["layers"])
    if case["integration"] == "pal" and case["summary"] != 16:
        own.append(f"k={case['summary']}")
    return " ".join([*own, *(f"{name.removesuffix('_tokens')} {case[name]}" for name in varied)])


def print_plan(rows: Sequence[Row], console: Console) -> None:
    """Integrations side by side."""
    table = Table("", *(row["integration"] for row in rows))
    gigabytes = {"peak_bytes": "peak in training", "rest_bytes": "of it above weights, gradients, optimizer",
                 "inference_bytes": "peak in inference", "kv_bytes": "text cache", "memory_bytes": "audio memory"}  # fmt: skip
    table.add_row("parameters (trained), millions", *(f"{r['parameters'] / 1e6:.1f} ({r['trained'] / 1e6:.1f})" for r in rows))
    table.add_row("TFLOP of a training step", *(f"{r['step_flops'] / 1e12:.4g}" for r in rows))
    for part in rows[0]["forward_flops"]:
        table.add_row(f"  forward: {part}", *(f"{r['forward_flops'][part] / 1e12:.4g}" for r in rows))
    for name, title in gigabytes.items():
        table.add_row(f"{title}, GiB", *(f"{r[name] / GIB:.3g}" for r in rows))
    table.add_row("training step, ms", *(milliseconds(r["step_s"]) for r in rows))
    table.add_row("  floor", *(milliseconds(r["floor_s"]) for r in rows))
    table.add_row("largest batch that fits", *(str(r["largest_batch"]) for r in rows))
    console.print(table)
    console.print(f"constants: {rows[0]['constants']}", markup=False, highlight=False)


def print_check(checked: Sequence[Row], summary: Row, console: Console) -> None:
    """Predicted against measured; rows that the constants were fitted on are marked and not counted."""
    table = Table("case", "way", "peak GiB", "predicted", "error", "step ms", "predicted", "error", "")
    for row in checked:
        table.add_row(
            row["title"], row["way"], gib(row["peak_bytes"]), gib(row["predicted_bytes"]), _percent(row["memory_error"]),
            milliseconds(row["step_s"]), milliseconds(row["predicted_s"]), _percent(row["time_error"]),
            "fitted" if row["fitted"] else "",
        )  # fmt: skip
    console.print(table)
    for name, what in (("memory_error", "memory"), ("time_error", "time")):
        console.print(
            f"{what}: {summary[f'{name}_within']} of {summary[f'{name}_of']} rows within the goal, "
            f"largest error {_percent(summary[f'{name}_max'])}",
            markup=False,
        )
    for provenance in sorted({row["constants"] for row in checked}):
        console.print(f"constants: {provenance}", markup=False, highlight=False)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0%}"
