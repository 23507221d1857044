"""What every command shares: one clear line and exit code 2 for bad input."""

import sys
from collections.abc import Callable

from avatar_jax.types import InputError


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
    return 0
