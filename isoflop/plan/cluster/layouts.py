"""How a cluster would train a model: ddp, fsdp or hsdp, shards, passes, and the seconds of a step. No torch.

By default a step is what isoflop/parallel/shard.py makes of it: parameters are gathered in float32, gradients are
summed after the last pass (until then fsdp holds them whole), and the model is built whole on every GPU before it is
divided. hsdp shards within whole nodes, as many as are fastest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isoflop.errors import UserError
from isoflop.parallel.cost import Mode, Parallelism, ProcessMemory, activation_bytes, memory
from isoflop.plan.cluster.machines import Cluster
from isoflop.plan.cluster.timing import USABLE, Step, Work, require_fits, step

MODES: tuple[Mode, ...] = ("ddp", "fsdp", "hsdp")


@dataclass(frozen=True)
class Shape:
    """What the calculation knows of a model.

    Attributes:
        parameters: all of them.
        flops: per token, forward and backward, attention included ("palm" in model/count.py).
        largest_unit: parameters of the largest piece that is gathered at once.
    """

    parameters: int
    flops: float
    layers: int
    d_model: int
    context: int
    largest_unit: int


@dataclass(frozen=True)
class Way:
    """How a step is done.

    Attributes:
        share: of the peak.
        recompute: activations are recomputed in the backward pass.
        gather: bytes of a parameter while it is gathered.
        every: gradients are summed after every pass, not after the last alone.
        pieces: the model need not fit a GPU whole at first.
    """

    share: float
    recompute: bool = False
    gather: float = 4
    every: bool = False
    pieces: bool = False


@dataclass(frozen=True)
class Row:
    """One way to train it."""

    layout: Parallelism
    sequences: int
    passes: int
    step: Step
    held: ProcessMemory

    def tokens_per_second(self, model: Shape) -> float:
        return self.layout.processes * self.sequences * self.passes * model.context / self.step.seconds


def rows(
    model: Shape, cluster: Cluster, gpus: int, batch: float, way: Way, modes: Sequence[Mode] = MODES
) -> Iterator[Row | str]:
    """The modes on so many GPUs; the reason for one that cannot be."""
    sequences = round(batch / model.context / gpus)
    for mode in modes:
        if sequences < 1:
            yield f"{mode:5} a batch of {batch:,.0f} tokens has fewer sequences than there are GPUs"
            continue
        try:
            yield fastest(model, cluster, layouts(mode, gpus, cluster.node), sequences, way)
        except UserError as error:
            yield f"{mode:5} {str(error).partition('(')[0].strip()}"


def layouts(mode: Mode, gpus: int, node: int) -> list[Parallelism]:
    if mode != "hsdp":
        return [Parallelism(mode, gpus)]
    shards = [node * 2**i for i in range(20) if node * 2**i < gpus and gpus % (node * 2**i) == 0]
    if not shards:
        raise UserError("needs more than one node; on one it is fsdp")
    return [Parallelism("hsdp", gpus, gpus // size) for size in shards]


def fastest(model: Shape, cluster: Cluster, choices: list[Parallelism], sequences: int, way: Way) -> Row:
    """Each layout with the most sequences per pass that fit, and of these the fastest.

    Raises:
        UserError: if none fits.
    """
    whole = 4 * model.parameters
    if whole > USABLE * cluster.memory and not way.pieces:
        raise UserError(
            f"built whole on every GPU first, {whole / 1e9:.0f} GB do not fit one of {cluster.memory / 1e9:.0f} GB"
        )
    found: list[Row] = []
    refusal: UserError | None = None
    for layout in choices:
        for passes in (n for n in range(1, sequences + 1) if sequences % n == 0):
            tokens = sequences // passes * model.context
            held = memory(
                layout,
                model.parameters,
                largest_unit=model.largest_unit,
                activations=activation_bytes(tokens, model.layers, model.d_model, recompute=way.recompute),
                compute_bytes=way.gather if layout.shards > 1 else 2,
                cast_bytes=2 if layout.shards > 1 and way.gather > 2 else 0,
                whole_gradients=passes > 1 and not way.every,
            )
            try:
                require_fits(held, cluster)
            except UserError as error:
                refusal = error
                continue
            work = Work(model.parameters, model.flops, tokens, model.layers + 1, passes, way.recompute)
            taken = step(work, layout, cluster, way.share, parameter_bytes=way.gather, reduce_every_pass=way.every)
            found.append(Row(layout, sequences // passes, passes, taken, held))
            break
    if refusal and not found:
        raise refusal
    return min(found, key=lambda row: row.step.seconds)
