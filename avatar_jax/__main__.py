"""`avatar-jax <command> ...`: the same commands as `python -m avatar_jax.<command>`."""

import importlib
import sys

COMMANDS = ("train", "sample", "prepare", "evaluate", "convert", "plan", "demo")


def main() -> int:
    """Hand the remaining arguments to the command that the first one names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"usage: avatar-jax {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    sys.argv = [f"avatar-jax {name}", *sys.argv[2:]]
    # Imported when asked for: `avatar-jax prepare` need not load the training code.
    return importlib.import_module(f"avatar_jax.{name}").cli()


if __name__ == "__main__":
    sys.exit(main())
