"""The task causal_lm: a GPT on windows of text, which predicts each token from those before it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isoflop.data.config import DataConfig
from isoflop.data.loader import Loader
from isoflop.data.packing import DOCUMENTS, RUNNING
from isoflop.data.prepare import Prepared, Progress, documents, open_prepared, prepare, survey
from isoflop.data.tally import Tally, because, notes_of
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.generate.engine import generate, generate_all
from isoflop.generate.layout import lay_out, narrow
from isoflop.generate.request import Request
from isoflop.generate.rules import TEMPERATURE
from isoflop.measure import HeldOut, measure, measure_documents
from isoflop.model.blocks.part import Part
from isoflop.model.count import build_on_meta, flops_per_token
from isoflop.model.gpt import GPT
from isoflop.model.loss import CrossEntropy
from isoflop.model.presets import heads_for
from isoflop.model.registry import ATTENTIONS, entries_with
from isoflop.parallel.mesh import ALONE, Group
from isoflop.records import SampleLine
from isoflop.runtime import Runtime
from isoflop.trainer.config import RunConfig
from isoflop.trainer.workload import Rung, Text, Workload, matmul_weights

CHUNK_TOKENS = 1_000_000  # tokens of a source that are evaluated at once

# Each rung has about 1.3 to 1.8 times the parameters of the one before it. Width leads depth as in the GPT-2 and GPT-3
# families; the loss is flat over a wide range of aspect ratios (Kaplan et al. 2020, figure 5).
LADDER: tuple[Rung, ...] = (
    (1, 32),
    (2, 32),
    (2, 48),
    (2, 64),
    (3, 64),
    (3, 96),
    (4, 96),
    (4, 128),
    (5, 128),
    (5, 160),
    (6, 160),
    (6, 192),
    (7, 224),
    (8, 256),
    (8, 320),
    (8, 384),
    (10, 448),
    (10, 512),
    (12, 576),
    (12, 640),
    (12, 768),
    (16, 896),
    (16, 1024),
    (20, 1152),
    (20, 1280),
    (24, 1536),
    (24, 1792),
    (24, 2048),
    (32, 2560),
    (32, 3200),
    (32, 4096),
    (40, 5120),
    (64, 6656),
    (80, 8192),
)


class TextWorkload(Workload):
    """Windows of `model.context` tokens, from text that is not prepared yet."""

    ladder = LADDER
    considered = 4
    timed = 4
    min_sequences = 4
    sequences_multiple = 1
    static_shapes = True
    rates_by_width = True

    def __init__(self, text: Text, vocab_size: int = 0) -> None:
        self.text, self.vocab_size = text, vocab_size

    def heads(self, d_model: int) -> int:
        return heads_for(d_model)

    def tokens_per_sequence(self, config: RunConfig) -> int:
        return config.model.context

    def flops_per_token(self, config: RunConfig) -> float:
        return config.flops_per_token

    def palm_flops_per_token(self, config: RunConfig) -> float:
        return flops_per_token(config.model, convention="palm")

    def weights(self, config: RunConfig) -> int:
        return matmul_weights(config)

    def head_weights(self, config: RunConfig) -> int:
        return config.model.vocab_size * config.model.d_model

    def size(self, rung: Rung, config: RunConfig) -> float:
        """12 L D^2 + V D: accurate enough, without building a model for each rung."""
        layers, d_model = rung
        return 12 * layers * d_model**2 + config.model.vocab_size * d_model

    def tokens(self, config: RunConfig) -> int:
        return config.tokens


class CausalLM:
    """Next-token prediction (GPT-1, section 3.1): a loss of model/loss.py, by default cross-entropy, and the auxiliary
    losses of the model's parts.

    Attributes:
        windows: the kind of windows in which held-out text is measured, that of the run's training.
        document_mask: whether they hide other documents of a window, as in the run's training.
    """

    static_shapes = True
    windows: str = RUNNING
    document_mask: bool = False

    def __init__(self, criterion: CrossEntropy | None = None) -> None:
        self.criterion = criterion or CrossEntropy()

    def prepare(self, model: GPT) -> None:
        self.criterion.prepare(model)

    def compile(self) -> None:
        self.criterion.compile()

    def use_kernels(self) -> None:
        self.criterion.use_kernels()

    def loss(self, model: GPT, inputs_BT: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """`others`: targets_BT, and before these documents_BT if there is a mask between documents."""
        *documents, targets_BT = others
        return self.criterion(model, inputs_BT, targets_BT, *documents) + model.auxiliary_loss()

    def workload(self, config: RunConfig, progress: Progress | None = None) -> TextWorkload:
        if config.batch.document_mask:
            require_documents(config)
        surveyed = survey(config.data)
        if not surveyed.bytes:  # report what is wrong with the text before the machine is timed
            prepare(config.data)
        return TextWorkload(Text(surveyed.bytes, surveyed.sample), existing_vocab_size(config.data))

    def prepare_data(self, config: DataConfig, progress: Progress | None = None) -> Prepared:
        return prepare(config, progress=progress)

    def open_data(self, folder: Path, verify_checksums: bool = True) -> Prepared:
        return open_prepared(folder, verify_checksums)

    def batches(self, config: RunConfig, data: Prepared, skipped: tuple[tuple[int, int], ...] = ()) -> Loader:
        sizes, batch = config.sizes, config.batch
        if batch.document_mask:
            require_documents(config)
        return Loader(
            data,
            config.model.context,
            sizes.before,
            config.seed,
            skipped,
            sizes.context,
            batch.windows,
            batch.document_mask,
        )

    def flops_per_token(self, config: RunConfig, data: Prepared) -> float:
        return config.flops_per_token

    def palm_flops_per_token(self, config: RunConfig) -> float:
        return flops_per_token(config.model, convention="palm")

    def measure(
        self,
        model: GPT,
        data: Prepared,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
        pieces: bool = False,
    ) -> HeldOut:
        tokenizer = data.tokenizer
        return self.measure_tokens(model, data.heldout(), tokenizer, tokenizer.eot, runtime, max_tokens, group, pieces)

    def measure_tokens(
        self,
        model: GPT,
        tokens: Any,
        tokenizer: Tokenizer,
        before: int,
        runtime: Runtime,
        max_tokens: int = 0,
        group: Group = ALONE,
        pieces: bool = False,
    ) -> HeldOut:
        """The loss on a stream of documents, in this task's windows. `before`: what precedes the very first token of
        running windows."""
        sizes, eot, how = tokenizer.token_bytes(), tokenizer.eot, (runtime, max_tokens, group, pieces)
        if self.windows == DOCUMENTS:
            return measure_documents(model, tokens, sizes, eot, tokenizer.start, *how)
        return measure(model, tokens, sizes, before, *how, apart=eot if self.document_mask else None)

    def judge(self, model: GPT, data: Prepared, beam: int = 1) -> dict[str, Any]:
        """No metrics other than the loss."""
        return {}

    def measure_sources(
        self, model: GPT, tokenizer: Tokenizer, config: DataConfig, runtime: Runtime, beam: int = 1
    ) -> HeldOut:
        tally = Tally(strict=config.strict)
        chunks = token_chunks(config, tokenizer, tally)
        parts = [self.measure_tokens(model, tokens, tokenizer, tokenizer.start, runtime) for tokens in chunks]
        if not parts:
            raise UserError(f"there is no text in {' '.join(config.sources)}{because(tally)}")
        nats, tokens, size = (sum(getattr(part, name) for part in parts) for name in ("nats", "tokens", "bytes"))
        return HeldOut(nats, tokens, size, unused=tally.unused(), found_bytes=tally.found_bytes, notes=notes_of(tally))

    def samples(
        self, model: GPT, data: Prepared, config: RunConfig, until: Callable[[], bool] | None = None
    ) -> Iterator[SampleLine]:
        """Continuations of the configured prompts, drawn with a random generator of their own."""
        settings = config.sample
        for prompt in settings.prompts:
            text = generate(
                model,
                data.tokenizer,
                prompt,
                settings.tokens,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                seed=config.seed,
                stop_at_eot=False,
                until=until,
            )
            yield SampleLine(prompt=prompt, text=text)

    def write(self, model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], request: Request) -> list[str]:
        """The text that follows each prompt."""
        if request.beam != 1:
            raise UserError(
                f"--beam {request.beam} is for runs of --task seq2seq; this one continues a text, token by token"
            )
        arrange: Callable[[GPT], Any] = narrow if request.dtype == "bfloat16" else lay_out
        arrange(model)

        shown = [prompt if request.with_prompt else "" for prompt in prompts]
        for prompt in filter(None, shown):
            request.show(prompt)
        texts = generate_all(
            model,
            tokenizer,
            prompts,
            request.tokens,
            temperature=TEMPERATURE if request.temperature is None else request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=request.seed,
            on_text=request.on_text,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            stops=request.stops,
        )
        return [prompt + text for prompt, text in zip(shown, texts, strict=True)]


def require_documents(config: RunConfig) -> None:
    """Raise UserError if an attention of the model cannot hide other documents."""
    for part in build_on_meta(config.model).modules():
        if isinstance(part, Part) and part.score_width and not part.takes_documents:
            able = " or ".join(entries_with(ATTENTIONS, "takes_documents"))
            raise UserError(
                f"batch.document_mask = true hides other documents from attention, and model.attention = "
                f"{config.model.attention.name!r} cannot do that; use {able}, or batch.document_mask=false"
            )


def existing_vocab_size(data: DataConfig) -> int:
    """The number of ids of a given tokenizer; 0 if one is to be trained."""
    if data.path:
        return open_prepared(Path(data.path), verify_checksums=False).vocab_size
    tokenizer = Tokenizer.given(data.tokenizer, data.end_of_text)
    return 0 if tokenizer is None else tokenizer.vocab_size


def token_chunks(config: DataConfig, tokenizer: Tokenizer, tally: Tally) -> Iterator[npt.NDArray[np.int64]]:
    """The tokens of all documents of the sources, each followed by end-of-text, in chunks of about CHUNK_TOKENS."""
    pending: list[npt.NDArray[np.int64]] = []
    count = 0
    for document in documents(config, tally):
        pending.append(np.array([*tokenizer.encode(document), tokenizer.eot], dtype=np.int64))
        count += len(pending[-1])
        if count >= CHUNK_TOKENS:
            yield np.concatenate(pending)
            pending, count = [], 0
    if pending:
        yield np.concatenate(pending)
