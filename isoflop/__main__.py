"""`python -m isoflop` and the command `isoflop`."""

import sys


def main() -> None:
    from isoflop.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
