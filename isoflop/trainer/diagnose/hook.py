"""Takes the measures at regular steps of a run, on a copy of its model: the run has the same bits as without them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isoflop.model.build import Model, build_model
from isoflop.records import DiagnosticsLine
from isoflop.trainer.diagnose import measures
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState

LINES_PER_RUN = 20  # if `every.diagnose` is 0
SEQUENCES = 8  # in the probe batch: the first ones of the run's first batch


class Diagnose(Hook):
    """Writes a line of diagnostics.jsonl after the first step, every `every.diagnose` steps (by default LINES_PER_RUN
    in a run), and at the end. A line is about the weights after its step; measures of an update are about that of the
    next step.

    Only for runs of one process: with several, each holds a part of the model or exchanges gradients, and nothing is
    measured.
    """

    def __init__(self) -> None:
        self._copy: Model | None = None
        self._probe: tuple[Tensor, ...] = ()
        self._snapshot: tuple[int, int, dict[str, Tensor]] | None = None  # step, tokens and weights

    def started(self, state: RunState) -> None:
        if not state.layout.group.alone:
            return  # the job notifies the user (job/job.py)
        with torch.random.fork_rng([state.runtime.device] if state.runtime.device.type == "cuda" else []):
            self._copy = build_model(state.config.task, state.config.model)
            state.task.prepare(self._copy)
        self._copy.to(state.runtime.device)
        self._probe = tuple(part[:SEQUENCES] for part in state.runtime.send(state.batches.batch(0)))

    def stepped(self, state: RunState) -> None:
        if self._copy is None:
            return
        if self._snapshot is not None:
            snapshot, self._snapshot = self._snapshot, None
            if snapshot[0] == state.step - 1:
                self.write(state, snapshot, weights_of(state.model))
        every = state.config.every.diagnose or max(1, state.timetable.total_steps // LINES_PER_RUN)
        if state.step != 1 and not state.due(every):
            return
        snapshot = (state.step, state.tokens, weights_of(state.model))
        if state.done:
            self.write(state, snapshot, None)
        else:
            self._snapshot = snapshot

    def write(
        self, state: RunState, snapshot: tuple[int, int, dict[str, Tensor]], after: Mapping[str, Tensor] | None
    ) -> None:
        assert self._copy is not None
        step, tokens, before = snapshot
        by_layer, whole_model = diagnose(self._copy, state.task.loss, self._probe, before, after)
        state.folder.append(
            "diagnostics", DiagnosticsLine(step=step, tokens=tokens, by_layer=by_layer, whole=whole_model)
        )


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
        model: a scratch model, which the weights are loaded into.
        before: weights and buffers by name; after: those after an update, for the measures that need one.

    Returns:
        By measure, the numbers of each layer; and the numbers for the whole model, `sharpness` and `leakage`.
    """
    model.load_state_dict(before)
    by_layer = {"gradient_norm": measures.gradient_norms(model, loss, probe), **measures.activations(model, probe)}
    whole_model = {"sharpness": measures.sharpness(model, loss, probe), "leakage": measures.leakage(model, probe)}

    if after is not None:
        model.load_state_dict(after)
        updated = copy_layers(model)
        model.load_state_dict(before)
        by_layer["update_ratio"] = measures.update_ratios(copy_layers(model), updated)
        by_layer["covariate_shift"], by_layer["shift_cosine"] = measures.covariate_shift(model, loss, probe, updated)
    return by_layer, whole_model


def copy_layers(model: Model) -> dict[str, Any]:
    """Copies of the parameters, by layer."""
    return {name: [p.detach().clone() for p in group] for name, group in measures.layers(model).items()}
