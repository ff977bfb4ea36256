"""Checkpoints: one self-contained folder per step, written atomically. Reading one never executes its content.

    checkpoints/step-00001000/
      manifest.json     size and SHA-256 of every other file
      config.json       the run's resolved configuration
      tokenizer.json
      state.json        format, step, data fingerprint, and the trainer's progress (seconds, tokens)
      tensors/*.safetensors     model.*, average.*, optim.* (see parallel/state.py), rng.*: torch's generators, and
                                probe.* (trainer/decay_probe.py)

A folder that differs from its manifest is refused: a changed byte, a missing file and an unknown file (such as a
planted pickle) are errors that name the file. Nothing is ever unpickled. A checkpoint may come from anyone: its content
is checked before use, in time and memory bounded by the size of its files.

Python's and numpy's random generators are not saved: a step does not use them.
"""

from isoflop.checkpoint.folder import (
    FORMAT,
    MANIFEST,
    STEP_FOLDER,
    Damaged,
    at_step,
    find,
    last_intact,
    latest,
    listing,
    prune,
    read_state,
    remove,
    set_aside,
    step_of,
    steps,
    verify,
)
from isoflop.checkpoint.reading import (
    Snapshot,
    check_buffers,
    check_weights,
    load,
    load_model,
    load_tensors,
    load_weights,
    read,
    require_same_data,
)
from isoflop.checkpoint.writing import Pending, take, write

__all__ = [
    "FORMAT",
    "MANIFEST",
    "STEP_FOLDER",
    "Damaged",
    "Pending",
    "Snapshot",
    "at_step",
    "check_buffers",
    "check_weights",
    "find",
    "last_intact",
    "latest",
    "listing",
    "load",
    "load_model",
    "load_tensors",
    "load_weights",
    "prune",
    "read",
    "read_state",
    "remove",
    "require_same_data",
    "set_aside",
    "step_of",
    "steps",
    "take",
    "verify",
    "write",
]
