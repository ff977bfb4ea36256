"""From a claim to the configurations that are run: the base, what each arm sets, and what is held equal."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from isoflop.config import from_dict, override
from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.lab import damage, spelling
from isoflop.lab.claim import Claim
from isoflop.lab.procedures.pairs import positions
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.model.count import parameters
from isoflop.plan.asked import VOCABULARY, Asked
from isoflop.plan.settings import with_rates
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.config import EveryConfig, RuntimeConfig

# The defaults of all claims: a model of which a laptop trains dozens, on one thread each.
BASE = (
    "model.layers=3",
    "model.d_model=64",
    "model.heads=2",
    "model.context=128",
    "model.vocab_size=512",
    "data.vocab_size=512",
    "batch.sequences=16",
    "runtime.device=cpu",
    "runtime.dtype=float32",
    "runtime.threads=1",
    "guard.preflight=false",
)
PAIRS = PROCEDURES["pairs"]
MEASUREMENTS = 8  # of held-out text along a run, for its curve
EVALUATE_TOKENS = 16_384
WINDOW = 4  # values of a matched field that are tried on either side of the nearest
NEAR = 0.03  # relative difference in parameters that still counts as equal
TURNS, TURN_SECONDS = 3, 1.5  # pairs of timings; the median of their ratios is used
OVERHEAD = 3.0  # seconds of a run outside its steps: reading the data, measuring
GLANCE = 0.6  # seconds of steps from which the length of a run is estimated


@dataclass(frozen=True)
class ReadyArm:
    """An arm as it will be run.

    Attributes:
        config: with its steps, and the planned rates.
        size: distinct parameters; 0 where no model is built.
        tokens, flops: of a run, flops as 6 N D; 0 where nothing is trained.
        seconds: of a run on one thread, estimated; 0 where nothing is trained.
        batches: those that it is timed on, of pairs; None: random tokens.
    """

    name: str
    config: RunConfig
    size: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    batches: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Cost:
    """What a step of an arm costs: its tokens (of pairs the mean, without padding), and 6 N FLOPs per token."""

    tokens_per_step: float
    flops_per_token: float


def assignments(claim: Claim, arm: str) -> tuple[str, ...]:
    return (*claim.setup.set, *claim.arms[arm].set)


def begin(claim: Claim, arm: str) -> RunConfig:
    """The base with what the claim and the arm set, on the named sources.

    Raises:
        UserError: for an assignment that does not fit.
    """
    setup, given = claim.setup, assignments(claim, arm)
    if setup.base:
        base = from_dict(RunConfig, setup.base, "setup.base")
        data = replace(base.data, sources=tuple(setup.sources), path="") if setup.sources else base.data
        return override(replace(base, data=data, runtime=one_thread(base.runtime)), given)
    config = override(RunConfig(data=DataConfig(sources=tuple(setup.sources))), [*BASE, *given])
    return with_rates(config, Asked.of(given))


def configure(claim: Claim, arm: str) -> RunConfig:
    """An arm's configuration except for its length.

    The learning rates are the plan's for the arm's width and optimiser, unless something sets them: where the base is a
    recipe, its rates are kept.

    Raises:
        UserError: naming the arm, for an assignment that does not fit.
    """
    entry, asked = PROCEDURES[claim.procedure(arm)], Asked.of(assignments(claim, arm))
    try:
        config = begin(claim, arm)
        config = replace(config, data=text_of(claim, arm, config.data))
        if not claim.setup.base and asked.names("data.vocab_size") and not asked.names(VOCABULARY):
            config = override(config, [f"model.vocab_size={config.data.vocab_size}"])
        if entry.pairs:
            config = with_pairs(config, asked)
        elif entry.reads and config.task != RunConfig.task:
            raise UserError(
                f'task = {config.task} is for pairs: set procedure = "pairs" in [setup], which trains and measures '
                "encoder-decoders and decoder-only models on pairs"
            )
        every = EveryConfig(log=50, evaluate=0, sample=0, checkpoint=0, keep=1, keep_best=False, background=False)
        return replace(config, every=every, evaluate_tokens=EVALUATE_TOKENS, trackers=(), seconds=0.0)
    except UserError as error:
        raise UserError(f"arm {arm}: {error}") from None


def text_of(claim: Claim, arm: str, data: DataConfig) -> DataConfig:
    """The data of an arm: damaged, or some of the claim's sources, where it says so.

    Raises:
        UserError: if a source that the claim needs is not among those given.
    """
    if missing := [name for name in claim.needs if name not in damage.named(data.sources)]:
        files = " ".join(f"{name}=FILE" for name in claim.needs)
        raise UserError(
            f"the claim compares text that isoflop does not have, and no source is named {' or '.join(missing)}: "
            f"isoflop lab run {claim.own_name} {files}"
        )
    if sources := claim.arms[arm].sources:
        return damage.apart(data, sources, claim.needs)
    return damage.damaged(data, claim.arms[arm].damage) if claim.arms[arm].damage else data


def write_text_of(claim: Claim, arm: str) -> None:
    """Write the text that `text_of` names, where it is not the user's own."""
    spec = claim.arms[arm]
    if not spec.damage and not spec.sources:
        return
    data = begin(claim, arm).data
    if spec.sources:
        damage.write_apart(data, claim.needs)
    else:
        damage.write(data, spec.damage)


def with_pairs(config: RunConfig, asked: Asked) -> RunConfig:
    """The configuration on its pairs, generated ones where no source is named: with the ids of their tokenizer and room
    for the longest pair, unless these are set.

    Raises:
        UserError: if the pairs cannot be prepared.
    """
    if not config.data.sources:
        config = replace(config, data=replace(config.data, sources=(f"spelling={spelling.write()}",)))
    prepared = PAIRS.task(config).prepare_data(config.data)
    found = {VOCABULARY: prepared.vocab_size, "model.context": positions(prepared)}
    return override(config, [f"{name}={value}" for name, value in found.items() if not asked.names(name)])


def cost_of(claim: Claim, arm: str, config: RunConfig) -> Cost:
    """The cost of an arm's steps."""
    entry = PROCEDURES[claim.procedure(arm)]
    if not entry.pairs:
        return Cost(config.tokens_per_step, config.flops_per_token)
    task = entry.task(config)
    prepared = task.prepare_data(config.data)
    return Cost(config.batch.sequences * sum(prepared.mean_lengths()), task.flops_per_token(config, prepared))


def one_thread(runtime: RuntimeConfig) -> RuntimeConfig:
    """The runtime of a recipe's runs in the lab: one thread per worker; where the recipe says "auto", a CPU in single
    precision."""
    device = "cpu" if runtime.device == "auto" else runtime.device
    dtype = "float32" if runtime.dtype == "auto" else runtime.dtype
    return replace(runtime, device=device, dtype=dtype, threads=1)


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    return replace(config, steps=steps, every=replace(config.every, evaluate=max(1, steps // MEASUREMENTS)))


def size_of(config: RunConfig) -> int:
    return parameters(config.model, config.task).total


def matched(config: RunConfig, field: str, wanted: int, arm: str) -> RunConfig:
    """The configuration with the whole number in `field` whose parameters are nearest to those wanted.

    Raises:
        UserError: if none is within NEAR.
    """

    def at(value: int) -> tuple[RunConfig, int] | None:
        """The configuration with this value, and its parameters; None if it cannot be built."""
        try:
            made = override(config, [f"{field}={value}"])
            return made, size_of(made)
        except UserError:
            return None

    def reaches(value: int) -> bool:
        """Whether this value, or the next one that can be built (a width that the heads divide), has at least as many
        parameters as wanted."""
        made = next((found for one in range(value, value + WINDOW) if (found := at(one))), None)
        return made is None or made[1] >= wanted

    low, high = 1, 2
    while high < 2**20 and not reaches(high):
        low, high = high, 2 * high
    while low + 1 < high:
        half = (low + high) // 2
        low, high = (low, half) if reaches(half) else (half, high)

    around = [found for one in range(max(1, high - WINDOW), high + WINDOW) if (found := at(one))]
    near = min(around, key=lambda found: abs(found[1] - wanted), default=None)
    if near is None or abs(near[1] - wanted) > NEAR * wanted:
        raise UserError(
            f"arm {arm}: no {field} gives it {wanted:,} parameters, as the first arm has; match another field"
        )
    return near[0]


def configs_of(claim: Claim) -> dict[str, RunConfig]:
    """The configurations of all arms except for their lengths, with fields matched.

    Raises:
        UserError: if parameters are to be equal and cannot be.
    """
    configs = {arm: configure(claim, arm) for arm in claim.arms}
    built = [arm for arm in configs if PROCEDURES[claim.procedure(arm)].builds]
    for arm in built:
        if field := claim.arms[arm].match:
            configs[arm] = matched(configs[arm], field, size_of(configs[built[0]]), arm)
    if "parameters" in claim.setup.equal:
        check_equal({arm: size_of(configs[arm]) for arm in built})
    return configs


def trained(claim: Claim) -> list[str]:
    """The arms that are trained."""
    return [arm for arm in claim.arms if PROCEDURES[claim.procedure(arm)].trains]


def speeds_of(claim: Claim) -> dict[str, float]:
    """Tokens per second of each trained arm over those of the first, measured now.

    Raises:
        UserError: for pairs, which are not timed.
    """
    configs, names = configs_of(claim), trained(claim)
    for arm in names:
        if configs[arm].batch.grows:  # which part of a run has which steps depends on its length
            tokens = claim.setup.tokens * claim.arms[arm].times
            configs[arm] = with_steps(configs[arm], steps_for(configs[arm], cost_of(claim, arm, configs[arm]), tokens))
    if pairs := [arm for arm in names if PROCEDURES[claim.procedure(arm)].pairs]:
        raise UserError(
            f'arm {pairs[0]}: seconds are held equal for text only; for pairs use equal = ["flops"] or ["tokens"]'
        )
    return {arm: speed_ratio(configs[names[0]], configs[arm]) for arm in names}


def ready(claim: Claim, speeds: Mapping[str, float]) -> list[ReadyArm]:
    """All arms as they will be run, in the claim's order.

    Args:
        speeds: where seconds are held equal, tokens per second of each trained arm over those of the first.

    Raises:
        UserError: if something that is to be held equal cannot be.
    """
    configs, names = configs_of(claim), trained(claim)
    costs = {arm: cost_of(claim, arm, configs[arm]) for arm in names}

    made = []
    for arm, config in configs.items():
        entry = PROCEDURES[claim.procedure(arm)]
        size = size_of(config) if entry.builds else 0
        if arm not in names:
            made.append(ReadyArm(arm, config, size))
            continue

        wanted = claim.setup.tokens * claim.arms[arm].times
        tokens = tokens_of(claim, wanted, costs[names[0]], costs[arm], speeds.get(arm, 1.0))
        config = with_steps(config, steps_for(config, costs[arm], tokens))
        tokens, batches = float(config.tokens), None
        if entry.pairs:
            task = entry.task(config)
            batches = task.batches(config, task.prepare_data(config.data))
            tokens = float(batches.tokens(config.steps))
        made.append(ReadyArm(arm, config, size, tokens, tokens * costs[arm].flops_per_token, batches=batches))
    return made


def tokens_of(claim: Claim, tokens: float, first: Cost, own: Cost, speed: float) -> float:
    """Tokens of an arm's runs, so that these, their FLOPs (6 N D) or their seconds are those of the first arm with so
    many tokens."""
    if claim.setup.length == "flops":
        tokens *= first.flops_per_token / own.flops_per_token
    elif claim.setup.length == "seconds":
        tokens *= speed
    return tokens


def steps_for(config: RunConfig, cost: Cost, tokens: float) -> int:
    """The number of steps that reads about so many tokens."""
    if not config.batch.ramp_from:
        return max(1, round(tokens / cost.tokens_per_step))
    enough = max(2, config.batch.steps_for(tokens / config.model.context))
    return min(enough - 1, enough, key=lambda steps: abs(replace(config, steps=steps).tokens - tokens))


def check_equal(sizes: Mapping[str, int]) -> None:
    """Raises UserError, naming the arms, unless their parameters are within NEAR of one another."""
    if max(sizes.values()) > (1 + NEAR) * min(sizes.values()):
        told = ", ".join(f"{arm} {size:,}" for arm, size in sizes.items())
        raise UserError(
            f"parameters are to be equal and are not: {told}; give an arm a field to match, as in "
            'match = "model.layers", or take parameters out of setup.equal'
        )


def speed_ratio(first: RunConfig, config: RunConfig) -> float:
    """Tokens per second of `config` over those of `first`, by the processor's clock and in turns, so that neither a
    drift of the machine's speed nor other programs on it change the ratio."""
    if first == config:
        return 1.0
    ratios = []
    for _ in range(TURNS):
        one, other = throughput.time_in_turns([first, config], TURN_SECONDS, clock=time.process_time)
        ratios.append(other.tokens_per_second / one.tokens_per_second)
    return statistics.median(ratios)


def timed(arm: ReadyArm) -> ReadyArm:
    """The same with the seconds that a run takes on one thread, measured."""
    data = [arm.batches] if arm.batches is not None else []
    [speed] = throughput.time_in_turns([arm.config], GLANCE, data)
    return replace(arm, seconds=(arm.tokens or arm.config.tokens) / speed.tokens_per_second)
