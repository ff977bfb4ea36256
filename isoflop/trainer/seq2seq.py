"""The task seq2seq: an output from its input, by an encoder-decoder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.data.config import DataConfig
from isoflop.data.pair_loader import PairLoader, collate
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepare import Progress
from isoflop.data.prepared_pairs import LoosePairs, PreparedPairs, open_pairs
from isoflop.errors import UserError
from isoflop.generate.transduce import transduce
from isoflop.measure import HeldOut, measure_pairs
from isoflop.model.count import pair_flops_per_token
from isoflop.model.encoder_decoder import EncodedSource, EncoderDecoder
from isoflop.model.loss import CrossEntropy, name_of
from isoflop.parallel.mesh import ALONE, Group
from isoflop.runtime import Runtime
from isoflop.trainer.config import RunConfig

SHOWN = 5  # held-out inputs whose outputs are written down along the way


class Writer:
    """A decoder at work on one source: what the losses of model/loss.py need of a model."""

    def __init__(self, model: EncoderDecoder, source: EncodedSource) -> None:
        self.model, self.source = model, source
        self.head_weight, self.logit_cap = model.head_weight, model.logit_cap

    def hidden(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.model.write(tokens_BT, self.source)


class Seq2Seq:
    """Cross-entropy of each token of an output given the input and the tokens before it (Sutskever et al. 2014,
    1409.3215, equation 1), or another loss of model/loss.py, and the auxiliary losses of the model's parts. Padding is
    not counted.

    Raises:
        UserError: for a loss that needs a decoder-only model, and (batches) for a ramp or a prompt that does not fit.
    """

    def __init__(self, criterion: CrossEntropy | None = None) -> None:
        self.criterion = criterion or CrossEntropy()
        if self.criterion.decoder_only:
            raise UserError(f"loss = {name_of(self.criterion)!r} is for task causal_lm; with seq2seq use cross_entropy")

    def prepare(self, model: EncoderDecoder) -> None:
        """Nothing is added."""

    def compile(self) -> None:
        """Nothing: nearly every batch has another shape, and each would be compiled anew."""

    def loss(
        self,
        model: EncoderDecoder,
        source_BS: torch.Tensor,
        visible_BS: torch.Tensor,
        inputs_BT: torch.Tensor,
        targets_BT: torch.Tensor,
    ) -> torch.Tensor:
        writer: Any = Writer(model, model.read(source_BS, visible_BS))
        return self.criterion(writer, inputs_BT, targets_BT) + model.auxiliary_loss()

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> PreparedPairs:
        return prepare_pairs(config, progress)

    def open_data(self, folder: Path, verify_checksums: bool = True) -> PreparedPairs:
        return open_pairs(folder, verify_checksums)

    def batches(self, config: RunConfig, data: PreparedPairs, skipped: tuple[tuple[int, int], ...] = ()) -> PairLoader:
        if config.batch.ramp_from:
            raise UserError(f"batch.ramp_from = {config.batch.ramp_from} is for text; steps of pairs are all alike")
        for prompt in config.sample.prompts:
            if (length := len(data.tokenizer.encode(prompt))) > config.model.context:
                raise UserError(
                    f"sample.prompts has an input of {length} tokens and model.context is {config.model.context}: "
                    f"shorten {prompt[:40]!r}"
                )
        return PairLoader(data, config.model.context, config.batch.sequences, config.seed, skipped)

    def flops_per_token(self, config: RunConfig, data: PreparedPairs) -> float:
        return pair_flops_per_token(config.model, *data.mean_lengths())

    def measure(
        self,
        model: EncoderDecoder,
        data: PreparedPairs | LoosePairs,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
    ) -> HeldOut:
        pairs, tokenizer = data.heldout(), data.tokenizer
        return measure_pairs(
            model,
            pairs,
            lambda chosen: collate(pairs, chosen, tokenizer.eot),
            tokenizer.token_bytes(),
            runtime,
            max_tokens,
            group,
        )

    def samples(self, model: EncoderDecoder, data: PreparedPairs, config: RunConfig) -> Iterator[dict[str, str]]:
        """Greedy outputs for a few held-out inputs, each with one of its references, and for the prompts given."""
        pairs, tokenizer = data.heldout(), data.tokenizer
        shown = [i * len(pairs) // SHOWN for i in range(min(SHOWN, len(pairs)))]
        prompts = [prompt for prompt in config.sample.prompts if prompt]
        sources = [pairs.source[i] for i in shown] + [np.array(tokenizer.encode(prompt)) for prompt in prompts]
        outputs = transduce(model, sources, tokenizer.eot)
        for number, (source, output) in enumerate(zip(sources, outputs, strict=True)):
            line = {"prompt": tokenizer.decode(source), "text": tokenizer.decode(output)}
            if number < len(shown):
                line["reference"] = tokenizer.decode(pairs.target[shown[number]])
            yield line
