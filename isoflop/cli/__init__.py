"""The command line, a thin layer: each command parses its arguments, calls one public function and prints.

The rest of isoflop is imported inside the commands, so that `isoflop --help` does not wait for torch.
"""

from isoflop.cli.app import run as run
