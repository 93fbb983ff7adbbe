"""Programs that are no part of the project, called with one-line errors."""

import subprocess

from pal_audio.errors import PalError


def called(*command: str) -> str:
    """What a program says on its standard output.

    Raises:
        PalError: it failed, with the last line that it said.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise PalError(f"{command[0]}: cannot be run ({error.strerror})") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["it said nothing"]
        raise PalError(f"{command[0]} ended with status {done.returncode}: {said[0]}")
    return done.stdout
