"""The task seq2seq: an encoder-decoder on padded batches of pairs, which predicts an output from its input."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.data.config import DataConfig
from isoflop.data.pair_loader import PairLoader, collate
from isoflop.data.pairs import pairs_to_measure, prepare_pairs
from isoflop.data.prepare import Progress
from isoflop.data.prepared_pairs import LoosePairs, PreparedPairs, open_pairs
from isoflop.data.tally import Tally, notes_of
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.evaluate import transduction
from isoflop.generate.request import Request
from isoflop.generate.transduce import transduce
from isoflop.measure import HeldOut, measure_pairs
from isoflop.model.config import ModelConfig
from isoflop.model.count import pair_flops_per_token
from isoflop.model.encoder_decoder import EncodedSource, EncoderDecoder
from isoflop.model.loss import CrossEntropy, name_of
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import SampleLine
from isoflop.runtime import Runtime
from isoflop.trainer.config import RunConfig
from isoflop.trainer.workload import Notes, Rung, Workload

# (blocks of the encoder and of the decoder, d_model)
LADDER: tuple[Rung, ...] = ((1, 64), (2, 64), (2, 128), (3, 192), (4, 256), (6, 384), (6, 512), (6, 768))
HEAD_WIDTH = 16  # narrower than a GPT's: 4 heads of 16 in place of 1 of 64 lowered the error rate by a quarter (LAB.md)
SAMPLED_INPUTS = 5  # held-out inputs whose outputs are recorded as samples


class Writer:
    """A decoder with an encoded source: the part of a model that the losses of model/loss.py use."""

    def __init__(self, model: EncoderDecoder, source: EncodedSource) -> None:
        self.model, self.source = model, source
        self.head_weight, self.logit_cap = model.head_weight, model.logit_cap

    def hidden(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.model.write(tokens_BT, self.source)


class PairWorkload(Workload):
    """Pairs, which are prepared before the plan: their lengths are known, so that each candidate is timed on its own
    first batches. Tokens are those of both sides."""

    ladder = LADDER
    timed = 3
    sequences = "pairs"

    def __init__(self, pairs: PreparedPairs) -> None:
        self.pairs = self.data = pairs
        self.vocab_size, self.context = pairs.vocab_size, pairs.longest()
        self.lengths = pairs.mean_lengths()
        self.notes = Notes(
            dtype="float32 on a CPU: the matrix products of short sequences are small",
            device="the matrix products are small",
            tokenizer="chosen by the form of the two sides",
            shape=f"heads of width {HEAD_WIDTH}, see LAB.md",
            tokens="of inputs and outputs, without padding",
            context="the longest side of a pair, with its end-of-text token",
        )

    def heads(self, d_model: int) -> int:
        return d_model // HEAD_WIDTH

    def tokens_per_sequence(self, config: RunConfig) -> float:
        return sum(self.lengths)

    def flops_per_token(self, config: RunConfig) -> float:
        return pair_flops_per_token(config.model, *self.lengths)

    def batches(self, config: RunConfig) -> PairLoader:
        return PairLoader(self.pairs, config.model.context, config.batch.sequences, config.seed)

    def tokens(self, config: RunConfig) -> int:
        return self.batches(config).tokens(config.steps)

    def depth(self, model: ModelConfig) -> str:
        return f"{model.encoder_layers or model.layers} + {model.layers} layers"


class Seq2Seq:
    """Cross-entropy of each token of an output given the input and the tokens before it (Sutskever et al. 2014,
    1409.3215, equation 1), or another loss of model/loss.py, and the auxiliary losses of the model's parts. Padding is
    not counted.

    Raises:
        UserError: for a loss that needs a decoder-only model, and (batches) for a setting of text or a prompt that is
            too long.
    """

    static_shapes = False

    def __init__(self, criterion: CrossEntropy | None = None) -> None:
        self.criterion = criterion or CrossEntropy()
        if self.criterion.decoder_only:
            raise UserError(f"loss = {name_of(self.criterion)!r} is for task causal_lm; with seq2seq use cross_entropy")

    def prepare(self, model: EncoderDecoder) -> None:
        """Nothing to add."""

    def compile(self) -> None:
        """Does nothing: nearly every batch has another shape, and each would be compiled anew."""

    def use_kernels(self) -> None:
        self.criterion.use_kernels()

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

    def workload(self, config: RunConfig, progress: Progress | None = None) -> PairWorkload:
        config.batch.refuse_pairs()  # before the machine is timed and a plan is shown
        return PairWorkload(prepare_pairs(config.data, progress))

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> PreparedPairs:
        return prepare_pairs(config, progress)

    def open_data(self, folder: Path, verify_checksums: bool = True) -> PreparedPairs:
        return open_pairs(folder, verify_checksums)

    def batches(self, config: RunConfig, data: PreparedPairs, skipped: tuple[tuple[int, int], ...] = ()) -> PairLoader:
        config.batch.refuse_pairs()
        for prompt in config.sample.prompts:
            if (length := len(data.tokenizer.encode(prompt))) > config.model.context:
                raise UserError(
                    f"sample.prompts has an input of {length} tokens and model.context is {config.model.context}: "
                    f"shorten {prompt[:40]!r}"
                )
        return PairLoader(data, config.model.context, config.batch.sequences, config.seed, skipped)

    def flops_per_token(self, config: RunConfig, data: PreparedPairs) -> float:
        return pair_flops_per_token(config.model, *data.mean_lengths())

    def palm_flops_per_token(self, config: RunConfig) -> None:
        """None: the convention is for sequences of equal length."""

    def measure(
        self,
        model: EncoderDecoder,
        data: PreparedPairs | LoosePairs,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
        pieces: bool = False,
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
            pieces,
        )

    def judge(self, model: EncoderDecoder, data: PreparedPairs | LoosePairs, beam: int = 1) -> dict[str, Any]:
        """Edit-distance rates of the outputs for the held-out inputs."""
        return transduction.evaluate(model, data, beam).to_dict()

    def measure_sources(
        self, model: EncoderDecoder, tokenizer: Tokenizer, config: DataConfig, runtime: Runtime, beam: int = 1
    ) -> HeldOut:
        tally = Tally(strict=config.strict)
        loose = pairs_to_measure(config, tokenizer, tally)
        if loose.pairs.longest > model.config.context:
            raise UserError(
                f"the longest pair in {' '.join(config.sources)} takes {loose.pairs.longest} positions and the model "
                f"has {model.config.context}: leave longer pairs out"
            )
        heldout, metrics = self.measure(model, loose, runtime), self.judge(model, loose, beam)
        heldout = replace(heldout, task_metrics=metrics, unused=tally.unused(), found_bytes=tally.found_bytes)
        return replace(heldout, notes=notes_of(tally))

    def samples(
        self,
        model: EncoderDecoder,
        data: PreparedPairs,
        config: RunConfig,
        until: Callable[[], bool] | None = None,
    ) -> Iterator[SampleLine]:
        """Greedy outputs for a few held-out inputs, each with one of its references, and for the given prompts. They
        are few, no longer than the context, and generated in one batch: no time limit ends them."""
        pairs, tokenizer = data.heldout(), data.tokenizer
        sampled = [i * len(pairs) // SAMPLED_INPUTS for i in range(min(SAMPLED_INPUTS, len(pairs)))]
        prompts = [prompt for prompt in config.sample.prompts if prompt]
        sources = [pairs.source[i] for i in sampled] + [np.array(tokenizer.encode(prompt)) for prompt in prompts]
        outputs = transduce(model, sources, tokenizer.eot)
        for number, (source, output) in enumerate(zip(sources, outputs, strict=True)):
            reference = tokenizer.decode(pairs.target[sampled[number]]) if number < len(sampled) else None
            yield SampleLine(prompt=tokenizer.decode(source), text=tokenizer.decode(output), reference=reference)

    def write(self, model: EncoderDecoder, tokenizer: Tokenizer, prompts: Sequence[str], request: Request) -> list[str]:
        """The most likely output for each prompt."""
        if request.dtype != "float32":
            raise UserError(
                f"--dtype {request.dtype} is for runs that continue a text; leave it out for one of --task seq2seq"
            )
        if request.temperature:
            raise UserError(
                f"--temperature {request.temperature:g} is for runs that continue a text; this one (--task seq2seq) "
                "writes its likeliest output: leave it out, or search wider with --beam 4"
            )
        for name, value, unset in (
            ("--min-p", request.min_p, 0.0),
            ("--repetition-penalty", request.repetition_penalty, 1.0),
            ("--stop", " ".join(request.stops), ""),
        ):
            if value != unset:
                raise UserError(
                    f"{name} {value} is for runs that continue a text; leave it out for one of --task seq2seq"
                )
        if not all(prompts):
            raise UserError("--prompt is empty; this run (--task seq2seq) needs an input, as in --prompt WORD")

        outputs = transduce(model, tokenizer.encode_batch(prompts), tokenizer.eot, request.beam)
        texts = [tokenizer.decode(ids) for ids in outputs]
        for text in texts:
            request.show(text)
        return texts
