"""The rooms of docs/design.md import downwards only. Read from the source by `ast`, so nothing needs to be imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pal_audio

PACKAGE = Path(pal_audio.__file__).parent

# From the bottom up, in the order of the table there.
ROOMS = (
    "errors",
    "config",
    "transfer",
    "many_objects",
    "audio",
    "encoders",
    "connectors",
    "integration",
    "model",
    "data",
    "training",
    "evaluation",
    "bench",
    "cli",
)
RANK = {room: rank for rank, room in enumerate(ROOMS)}
PART_OF = {
    "commands": "cli",
    "__main__": "cli",
}  # files outside the room whose part they are

COMMANDS = {"typer", "click", "rich", "argparse", "http.server", "fastapi", "uvicorn"}
NETWORK = {"http", "urllib.request", "urllib3", "requests", "httpx", "aiohttp", "socket"}
SOUND_FILES = {"soundfile", "av", "pal_audio.audio"}
# `audio` is the one door for sound and fetches an https address where a caller allows it; tensor code has no such business.
NEVER = {
    "audio": COMMANDS | {"torch", "transformers"},
    "encoders": COMMANDS | NETWORK | SOUND_FILES,
    "connectors": COMMANDS | NETWORK | SOUND_FILES,
    "integration": COMMANDS | NETWORK | SOUND_FILES,
}


def room_of(module: str) -> str:
    """The room of a module named from the package's root: "encoders.conv" is in "encoders"."""
    first = module.partition(".")[0]
    room = PART_OF.get(first, first)
    assert room in RANK, f"{module} has no room: give it one in docs/design.md and here"
    return room


def imports(source: str, package: str) -> Iterator[str]:
    """Full names of the modules that a source imports anywhere in it, those for type checking included.

    Args:
        source: The text of a module.
        package: Full name of the package that it lies in, for relative imports.
    """
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pal_audio" and "pal_audio" in imported:
            yield f"pal_audio.{node.attr}"


def violations(package: Path) -> list[str]:
    """One line for each import that goes upwards, or to what a room must not know."""
    found = []
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts == ("__init__",):
            continue  # the face of the package; its names are loaded on first use
        room = room_of(parts[0])
        for name in set(imports(file.read_text(encoding="utf-8"), ".".join(("pal_audio", *parts[:-1])))):
            if any(name == never or name.startswith(never + ".") for never in NEVER.get(room, ())):
                found.append(f"{'/'.join(parts)}.py imports {name}")
            root, _, inner = name.partition(".")
            if root != "pal_audio" or not inner or inner.startswith("__"):
                continue
            home = pal_audio._HOME_OF.get(inner.partition(".")[0])
            other = room_of(home.partition(".")[2] if home else inner)
            if RANK[other] > RANK[room]:
                found.append(f"{'/'.join(parts)}.py ({room}) imports {name} ({other})")
    return sorted(found)


def test_rooms_import_downwards_only() -> None:
    assert violations(PACKAGE) == []


def test_every_room_of_the_tree_is_in_the_order() -> None:
    files = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    for name in files - {"__init__"}:
        room_of(name)


@pytest.mark.parametrize(
    ("file", "source", "named"),
    [
        ("encoders/conv.py", "from pal_audio.model import PalConfig", "pal_audio.model"),
        ("encoders/conv.py", "from ..connectors import base", "pal_audio.connectors"),
        ("integration/memory.py", "def f():\n    import pal_audio.training.run", "pal_audio.training.run"),
        ("integration/memory.py", "from urllib.request import urlopen", "urllib.request"),
        ("integration/memory.py", "from pal_audio import PalProcessor", "pal_audio.PalProcessor"),
        ("data/mix.py", "import pal_audio\nmodel = pal_audio.commands.ask", "pal_audio.commands"),
        ("audio/loading.py", "import typer", "typer"),
        ("errors.py", "from .audio import load_audio", "pal_audio.audio"),
        (
            "training/run.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pal_audio.cli import main",
            "pal_audio.cli",
        ),
    ],
)
def test_the_guard_sees(tmp_path: Path, file: str, source: str, named: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(source)
    assert any(f"imports {named}" in line for line in violations(tmp_path))


def test_what_is_allowed_is_let_through(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    lines = [
        "import numpy",
        "from . import configuration",
        "from ..integration import memory",
        "from pal_audio import __version__",
    ]
    (tmp_path / "model" / "modeling.py").write_text("\n".join([*lines, "import pal_audio.errors"]))
    assert violations(tmp_path) == []
