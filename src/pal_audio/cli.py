"""The command `pal`: its verbs, and the one place where an error becomes a line and an exit status.

Nothing here, and nothing that a verb imports at its top, loads torch: `--help` and mistakes in the arguments answer at once.
"""

import logging
import os
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from typer.main import get_command

import pal_audio
from pal_audio.commands import ask, bench, chat, data, encode, evaluate, export, info, recipes, train
from pal_audio.errors import PalError, Stopped

USER_ERROR = 2
OUR_ERROR = 1
INTERRUPTED = 130
PIPE_CLOSED = 141

app = typer.Typer(
    name="pal",
    help="Audio encoders joined to language models: train one, and ask it about sound.",
    epilog='Example: pal ask dog.wav "What do you hear?"',
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("ask", epilog=ask.EXAMPLE)(ask.ask)
app.command("chat", epilog=chat.EXAMPLE)(chat.chat)
app.command("train", epilog=train.EXAMPLE)(train.train)
app.command("encode", epilog=encode.EXAMPLE)(encode.encode)
app.add_typer(data.app, name="data")
app.add_typer(evaluate.app, name="eval")
app.add_typer(recipes.app, name="recipes")
app.add_typer(bench.app, name="bench")
app.command("info", epilog=info.EXAMPLE)(info.info)
app.command("export", epilog=export.EXAMPLE)(export.export)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pal {pal_audio.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _pal(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings; allowed anywhere.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(argv: list[str] | None = None) -> int:
    """Runs `pal` and returns its exit status: 0, 2 for the user's mistake, 1 for ours, 128 plus its number for a signal."""
    arguments, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not debug:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a package that nobody asked for
    try:
        with warnings.catch_warnings():
            if not debug:
                _one_line_warnings()
            status = get_command(app).main(arguments, prog_name="pal", standalone_mode=False)
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Stopped as stop:
        print(f"pal: {one_line(str(stop))}", file=sys.stderr)
        return stop.status
    except BrokenPipeError:
        _forget_stdout()
        return PIPE_CLOSED
    except Exception as error:
        if debug:
            traceback.print_exc()
        message, status = explain(error)
        print(f"pal: error: {message}", file=sys.stderr)
        return status


def explain(error: Exception) -> tuple[str, int]:
    """The one line that tells of an error, and the exit status: 2 where the user's input is wrong, 1 where we are."""
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        hint = f"; see `{context.command_path} --help`" if context is not None else ""
        return one_line(error.format_message()).rstrip(".") + hint, error.exit_code
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return one_line(f"{error.filename}: {error.strerror}"), USER_ERROR
    if isinstance(error, PalError | OSError) or (isinstance(error, ValueError) and _raised_by_us(error)):
        return one_line(str(error)), USER_ERROR
    what = one_line(f"{type(error).__name__}: {error}")
    return f"{what} (a fault of pal itself: run it again with --debug for the traceback)", OUR_ERROR


def one_line(text: str) -> str:
    """Without line breaks and runs of space, and with control characters made visible."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split()))


def _raised_by_us(error: Exception) -> bool:
    """True if our own check raised it; a ValueError out of the depths of a library is a fault of ours."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").startswith("pal_audio.")


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Takes `--debug` out wherever it stands before a `--`: one adds it at the end of the line that failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return options + arguments[end:], len(options) < end


def _one_line_warnings() -> None:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"pal: warning: {one_line(str(message))}", file=sys.stderr)

    warnings.showwarning = show
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)


def _forget_stdout() -> None:
    """The reader of our output is gone: what is still buffered must not raise once more when Python exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
