"""Diagnostics of a model during training: measures on a fixed batch of probe sequences, taken between steps.

measures   one function per measure, from a model and a batch to numbers by layer; usable without a run
hook       takes all of them at regular steps of a run, on a copy of its model, and writes diagnostics.jsonl
"""

from isoflop.trainer.diagnose.hook import Diagnose

__all__ = ["Diagnose"]
