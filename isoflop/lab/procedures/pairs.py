"""Training on pairs of an input and an output: an encoder-decoder, or a decoder-only model that reads both as one text.

    encoder-decoder (task = seq2seq)     x1 ... xS      ->  encoder
                                         eot y1 ... yT  ->  decoder, which predicts y1 ... yT eot
    decoder-only (task = causal_lm)      x1 ... xS eot y1 ... yT, of which it predicts y1 ... yT eot

Both read the same pairs in the same order, S + T + 1 tokens per pair, and both have the loss of the T + 1 tokens of the
output alone, in training and on held-out pairs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.data.config import DataConfig
from isoflop.data.pair_loader import IGNORED, PairLoader, collate
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepare import Progress
from isoflop.data.prepared_pairs import PreparedPairs, open_pairs
from isoflop.errors import UserError
from isoflop.evaluate.transduction import judge, references
from isoflop.generate.batch import Batch, Order
from isoflop.generate.engine import steps
from isoflop.generate.rules import Sampling
from isoflop.lab.procedures.job import Job, Measured
from isoflop.lab.procedures.train import JUDGED, MEASURES, whole_run
from isoflop.measure import HeldOut, measure_pairs
from isoflop.model.count import build_on_meta, count
from isoflop.model.gpt import GPT
from isoflop.model.loss import name_of
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import SampleLine
from isoflop.runtime import Runtime
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import CausalLM
from isoflop.trainer.task import make_task

PAIR_MEASURES = (*MEASURES, *JUDGED)


def pairs(job: Job) -> Measured:
    """Train on pairs and measure the outputs of held-out pairs: the measures of train.py, bits and nats of the outputs,
    and of greedy decoding `exact_match`, the share of inputs whose whole output is right, and `unit_error_rate`, edits
    per unit of the references."""
    return whole_run(job, task_of(job.config))


def task_of(config: RunConfig) -> Any:
    """The task of a configuration on pairs: with a decoder-only model `OneText`, else its own."""
    task = make_task(config)
    return OneText(task.criterion) if isinstance(task, CausalLM) else task


def positions(prepared: PreparedPairs) -> int:
    """Positions that a decoder-only model needs for the longest pair; an encoder-decoder needs fewer."""
    return max(
        int((side.source.lengths + side.target.lengths + 1).max()) for side in (prepared.train(), prepared.heldout())
    )


class OneText(CausalLM):
    """A decoder-only model on pairs, each as one text of an input, end-of-text and an output. The loss, and the head's
    matrix product, are of the tokens of the output.

    Raises:
        UserError: for a loss that adds heads: it has targets beyond the output.
    """

    static_shapes = False

    def __init__(self, criterion: Any = None) -> None:
        super().__init__(criterion)
        if self.criterion.decoder_only:
            raise UserError(f"loss = {name_of(self.criterion)!r} is for text; with pairs use cross_entropy")

    def loss(self, model: GPT, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        counted = targets_BT != IGNORED
        h_1ND, targets_1N = model.hidden(inputs_BT)[counted].unsqueeze(0), targets_BT[counted].unsqueeze(0)
        return self.criterion.of(model, h_1ND, targets_1N) + model.auxiliary_loss()

    def compile(self) -> None:
        """Does nothing: nearly every batch has another shape."""

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> PreparedPairs:  # type: ignore[override]
        return prepare_pairs(config, progress)

    def open_data(self, folder: Path, verify_checksums: bool = True) -> PreparedPairs:  # type: ignore[override]
        return open_pairs(folder, verify_checksums)

    def batches(  # type: ignore[override]
        self, config: RunConfig, data: PreparedPairs, skipped: tuple[tuple[int, int], ...] = ()
    ) -> "OneTextLoader":
        config.batch.refuse_pairs()
        return OneTextLoader(data, config.model.context, config.batch.sequences, config.seed, skipped)

    def flops_per_token(self, config: RunConfig, data: PreparedPairs) -> float:  # type: ignore[override]
        """6 (N_blocks (S + T + 1) + N_head (T + 1)) / (S + T + 1) at the mean lengths: as an encoder-decoder counts,
        each weight for the tokens that it multiplies."""
        found = count(build_on_meta(config.model))
        source, target = data.mean_lengths()
        return 6 * (found.matmul - found.head + found.head * target / (source + target))

    def palm_flops_per_token(self, config: RunConfig) -> None:  # type: ignore[override]
        """None: the convention is for sequences of equal length."""

    def measure(  # type: ignore[override]
        self,
        model: GPT,
        data: PreparedPairs,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
        pieces: bool = False,
    ) -> HeldOut:
        heldout, tokenizer = data.heldout(), data.tokenizer
        either: Any = model  # all that is asked of it is `hidden`, of what `batch` gives
        return measure_pairs(
            either,
            heldout,
            lambda chosen: one_text(collate(heldout, chosen, tokenizer.eot), tokenizer.eot),
            tokenizer.token_bytes(),
            runtime,
            max_tokens,
            group,
            pieces,
        )

    def judge(self, model: GPT, data: PreparedPairs, beam: int = 1) -> dict[str, Any]:  # type: ignore[override]
        """Edit-distance rates of the greedy outputs for held-out inputs."""
        tokenizer, longest = data.tokenizer, data.longest()

        def write(inputs: Sequence[str]) -> list[str]:
            prompts = [np.append(ids, tokenizer.eot) for ids in tokenizer.encode_batch(list(inputs))]
            return [tokenizer.decode(ids) for ids in greedy(model, prompts, longest, tokenizer.eot)]

        return judge(write, references(data)).to_dict()

    def samples(self, model: GPT, data: Any, config: RunConfig, until: Any = None) -> Iterator[SampleLine]:
        """None: the lab draws no samples."""
        return iter(())


class OneTextLoader(PairLoader):
    """The batches of PairLoader, each pair as one text: (inputs_BT, targets_BT), -100 where nothing is predicted.

    Raises:
        UserError: if a pair does not fit in the context.
    """

    def __init__(self, prepared: PreparedPairs, context: int, *further: Any) -> None:
        super().__init__(prepared, context, *further)
        if (needed := positions(prepared)) > context:
            raise UserError(
                f"model.context = {context} is less than the {needed} positions of the longest pair; "
                f"use model.context={needed}"
            )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, ...]:
        return one_text(super().batch(step, rank, world), self.eot)

    def largest(self, sequences: int) -> tuple[torch.Tensor, ...]:
        inputs_BT = torch.zeros((sequences, int(self.lengths.max())), dtype=torch.int64)
        return inputs_BT, inputs_BT.clone()


def one_text(batch: Sequence[torch.Tensor], eot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs_BU, targets_BU) of a batch as `collate` makes it: the source, end-of-text, the output; targets are those
    of the output. Padding is at the end, where a causal model does not see it."""
    source_BS, visible_BS, inputs_BT, targets_BT = batch
    sources, targets = visible_BS.sum(1).tolist(), (targets_BT != IGNORED).sum(1).tolist()
    shape = (len(sources), max(s + t for s, t in zip(sources, targets, strict=True)))
    inputs_BU = torch.full(shape, eot, dtype=torch.int64)
    targets_BU = torch.full(shape, IGNORED, dtype=torch.int64)
    for row, (s, t) in enumerate(zip(sources, targets, strict=True)):
        inputs_BU[row, :s] = source_BS[row, :s]
        inputs_BU[row, s : s + t] = inputs_BT[row, :t]
        targets_BU[row, s : s + t] = targets_BT[row, :t]
    return inputs_BU, targets_BU


@torch.no_grad()
def greedy(model: GPT, prompts: Sequence[np.ndarray], tokens: int, eot: int) -> list[list[int]]:
    """The likeliest next tokens after each prompt, at most so many, without the end-of-text that ends them."""
    sampling = Sampling(temperature=0.0)
    outputs: list[list[int]] = [[] for _ in prompts]
    batch = Batch(model, [Order(ids, tokens, number, sampling) for number, ids in enumerate(prompts)], eot)
    for numbers, given in steps(batch):
        for number, token in zip(numbers, given, strict=True):
            if token != eot:
                outputs[number].append(token)
    return outputs
