"""`python -m isoflop` and the command `isoflop`."""

import os
import sys
import time

LAST_WORDS = 1.0  # seconds: torchrun kills all processes once one has exited, and only one of them prints the reason


def main() -> None:
    from isoflop.terminal import OutputLost, exit_code, guard_standard_streams

    guard_standard_streams()  # before anything else opens a file
    from isoflop.allocator import keep_freed_memory
    from isoflop.cli import run

    keep_freed_memory()
    try:
        code = run(sys.argv[1:])
    except SystemExit as end:  # from tyro: 0 after a help text, 2 for invalid arguments
        code = end.code if isinstance(end.code, int) else 2 if end.code else 0

    try:
        sys.stdout.flush()
    except OutputLost as error:
        code = code or exit_code(error)
    sys.stderr.flush()

    if "WORLD_SIZE" in os.environ:
        # Under torchrun: gloo's threads can abort an interpreter that shuts down ("terminate called without an active
        # exception"), and torchrun would report a finished run as failed. All files are written and closed here.
        if code:
            time.sleep(LAST_WORDS)
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
