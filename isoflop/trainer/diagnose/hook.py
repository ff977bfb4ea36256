"""Takes the measures every so many steps of a run, on a copy of its model: the run has the same bits without."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isoflop.model.build import Model, build_model
from isoflop.records import DiagnosticsLine
from isoflop.trainer.diagnose import measures
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

TIMES = 20  # in a run, where `every.diagnose` says nothing
SEQUENCES = 8  # of the probe: the first of the run's first batch


class Diagnose(Hook):
    """Writes a line of diagnostics.jsonl after the first step, every `every.diagnose` steps (or TIMES in a run), and at
    the end. A line is of the weights after its step; what needs an update is of the next step's.

    In one process alone: several hold parts of a model, or exchange each gradient, and nothing is measured.
    """

    def __init__(self) -> None:
        self._copy: Model | None = None
        self._probe: tuple[Tensor, ...] = ()
        self._kept: tuple[int, int, dict[str, Tensor]] | None = None  # step, tokens and weights

    def started(self, state: RunState) -> None:
        if not state.layout.group.alone:
            return  # which the job says (job/job.py)
        with torch.random.fork_rng([state.runtime.device] if state.runtime.device.type == "cuda" else []):
            self._copy = build_model(state.config.task, state.config.model)
            state.task.prepare(self._copy)
        self._copy.to(state.runtime.device)
        self._probe = tuple(part[:SEQUENCES] for part in state.runtime.send(state.batches.batch(0)))

    def stepped(self, state: RunState) -> None:
        if self._copy is None:
            return
        if self._kept is not None:
            kept, self._kept = self._kept, None
            if kept[0] == state.step - 1:
                self.write(state, kept, weights_of(state.model))
        every = state.config.every.diagnose or max(1, state.timetable.total_steps // TIMES)
        if state.step != 1 and not state.due(every):
            return
        kept = (state.step, state.tokens, weights_of(state.model))
        if state.done:
            self.write(state, kept, None)
        else:
            self._kept = kept

    def write(
        self, state: RunState, kept: tuple[int, int, dict[str, Tensor]], after: Mapping[str, Tensor] | None
    ) -> None:
        assert self._copy is not None
        step, tokens, before = kept
        by_layer, whole = diagnose(self._copy, state.task.loss, self._probe, before, after)
        state.folder.append("diagnostics", DiagnosticsLine(step=step, tokens=tokens, by_layer=by_layer, whole=whole))


def weights_of(model: Model) -> dict[str, Tensor]:
    """A copy of a model's weights and buffers, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def diagnose(
    model: Model,
    loss: measures.Loss,
    probe: measures.Batch,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, measures.ByLayer], dict[str, float]]:
    """All measures of a model's weights.

    Args:
        model: takes the weights; a copy of nobody's.
        before: weights and buffers by name; after: those after an update, for the measures that need one.

    Returns:
        By measure the numbers of each layer, and those of the whole model: `sharpness`, `leakage`.
    """
    model.load_state_dict(before)
    by_layer = {"gradient_norm": measures.gradient_norms(model, loss, probe), **measures.activations(model, probe)}
    whole = {"sharpness": measures.sharpness(model, loss, probe), "leakage": measures.leakage(model, probe)}
    if after is not None:
        model.load_state_dict(after)
        updated = copies(model)
        model.load_state_dict(before)
        by_layer["update_ratio"] = measures.update_ratios(copies(model), updated)
        by_layer["covariate_shift"], by_layer["shift_cosine"] = measures.covariate_shift(model, loss, probe, updated)
    return by_layer, whole


def copies(model: Model) -> dict[str, Any]:
    return {name: [p.detach().clone() for p in group] for name, group in measures.layers(model).items()}
