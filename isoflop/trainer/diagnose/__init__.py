"""What goes on inside a model while it trains: measures on a fixed batch of probe sequences, taken outside the step.

measures   one function per measure: a model and a batch in, numbers by layer out; for a run and for anything else
hook       takes all of them every so many steps of a run, on a copy of its model, and writes diagnostics.jsonl
"""

from isoflop.trainer.diagnose.hook import Diagnose

__all__ = ["Diagnose"]
