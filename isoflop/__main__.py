"""`python -m isoflop` and the command `isoflop`."""

import sys


def main() -> None:
    from isoflop.allocator import keep_freed_memory
    from isoflop.cli import run

    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
