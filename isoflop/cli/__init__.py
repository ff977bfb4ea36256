"""The command line: a thin shell. Each command parses its arguments, calls one public function and prints.

Imports of the rest of isoflop are inside the commands, so that `isoflop --help` does not wait for torch.
"""

from isoflop.cli.app import run as run
