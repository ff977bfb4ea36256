"""The task seq2seq: an output from its input, by an encoder-decoder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from isoflop.data.config import DataConfig
from isoflop.data.pair_loader import PairLoader, collate
from isoflop.data.pairs import prepare_pairs
from isoflop.data.prepare import Progress
from isoflop.data.prepared_pairs import LoosePairs, PreparedPairs, open_pairs
from isoflop.generate.transduce import transduce
from isoflop.measure import HeldOut, measure_pairs
from isoflop.model.count import pair_flops_per_token
from isoflop.model.encoder_decoder import EncoderDecoder
from isoflop.model.loss import cross_entropy
from isoflop.runtime import Runtime
from isoflop.trainer.config import RunConfig

SHOWN = 5  # held-out inputs whose outputs are written down along the way


class Seq2Seq:
    """Cross-entropy of each token of an output given the input and the tokens before it (Sutskever et al. 2014,
    1409.3215, equation 1). Padding is not counted."""

    def loss(
        self,
        model: EncoderDecoder,
        source_BS: torch.Tensor,
        visible_BS: torch.Tensor,
        inputs_BT: torch.Tensor,
        targets_BT: torch.Tensor,
    ) -> torch.Tensor:
        return cross_entropy(model.hidden(source_BS, visible_BS, inputs_BT), model.head_weight, targets_BT)

    def prepare(self, config: DataConfig, progress: Progress | None = None) -> PreparedPairs:
        return prepare_pairs(config, progress)

    def open(self, folder: Path) -> PreparedPairs:
        return open_pairs(folder)

    def batches(self, config: RunConfig, data: PreparedPairs) -> PairLoader:
        return PairLoader(data, config.model.context, config.batch.sequences, config.seed)

    def flops_per_token(self, config: RunConfig, data: PreparedPairs) -> float:
        return pair_flops_per_token(config.model, *data.mean_lengths())

    def measure(
        self, model: EncoderDecoder, data: PreparedPairs | LoosePairs, runtime: Runtime, max_tokens: int = 0
    ) -> HeldOut:
        pairs, tokenizer = data.heldout(), data.tokenizer
        return measure_pairs(
            model,
            pairs,
            lambda chosen: collate(pairs, chosen, tokenizer.eot),
            tokenizer.token_bytes(),
            runtime,
            max_tokens,
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
