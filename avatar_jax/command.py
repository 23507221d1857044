"""What commands share: one clear line and exit code 2 for bad input; their files."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from avatar_jax.types import InputError

_BAD_PATHS = (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 2 after one line on stderr.

    Args:
      main: takes the arguments after the program's name.
      argv: those arguments; the process's own when absent.
    """
    try:
        main(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except _BAD_PATHS as error:
        line = f"error: {error.filename}: {error.strerror}; give another path."
        print(line, file=sys.stderr)
        return 2
    return 0


def split_overrides(argv: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Take `--config.a.b=value` and `--config.a.b value` out of the arguments."""
    overrides, rest = [], []
    queue = list(argv)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        name, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals and not queue:
            raise InputError(f"{argument} needs a value: {argument}=VALUE.")
        overrides.append((name, text if equals else queue.pop(0)))
    return overrides, rest


def use_compilation_cache() -> Path:
    """Keep compiled programs between runs, in the user's cache folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "avatar_jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def write_json(path: Path, record: dict) -> None:
    """Write plain values as JSON, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(path)
