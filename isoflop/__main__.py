"""`python -m isoflop` and the command `isoflop`."""

import os
import sys
import time

LAST_WORDS = 1.0  # seconds: torchrun ends all as soon as one has left, and only one of them says why


def main() -> None:
    from isoflop.allocator import keep_freed_memory
    from isoflop.cli import run

    keep_freed_memory()
    code = run(sys.argv[1:])
    if "WORLD_SIZE" in os.environ:
        # One of many: gloo's own threads can abort an interpreter that is being taken down ("terminate called without
        # an active exception"), and torchrun would call a finished run failed. All is written and closed by now.
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            time.sleep(LAST_WORDS)
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
