"""From a claim to the configurations that are run: the base, what each arm sets, and what is held equal."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from isoflop.config import from_dict, override
from isoflop.data.config import DataConfig
from isoflop.errors import UserError
from isoflop.lab.claim import Claim
from isoflop.lab.damage import damaged
from isoflop.lab.procedures.table import PROCEDURES
from isoflop.model.count import parameters
from isoflop.plan.asked import VOCABULARY, Asked
from isoflop.plan.settings import with_rates
from isoflop.trainer import RunConfig, throughput
from isoflop.trainer.config import EveryConfig, RuntimeConfig

# What the lab has where a claim and its arms say nothing: a model of which a laptop trains dozens, on one thread each.
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
MEASUREMENTS = 8  # of held-out text along a run, for its curve
EVALUATE_TOKENS = 16_384
WINDOW = 4  # values of a matched field that are looked at on either side
NEAR = 0.03  # share by which the parameters of arms that are held equal may differ
TURNS, TURN_SECONDS = 3, 1.5  # pairs of timings, of which the median counts
OVERHEAD = 3.0  # seconds of a run next to its steps: reading, measuring, the curve
GLANCE = 0.6  # seconds of steps that tell about how long a run takes


@dataclass(frozen=True)
class ReadyArm:
    """An arm as it will be run.

    Attributes:
        config: with its steps, and the planned rates.
        size: distinct parameters; 0 where no model is built.
        flops: of a run, 6 N D; 0 where nothing is trained.
        seconds: of a run on one thread, estimated; 0 where nothing is trained.
    """

    name: str
    config: RunConfig
    size: int = 0
    flops: float = 0.0
    seconds: float = 0.0


def assignments(claim: Claim, arm: str) -> tuple[str, ...]:
    return (*claim.setup.set, *claim.arms[arm].set)


def configure(claim: Claim, arm: str) -> RunConfig:
    """An arm's configuration but for its length.

    The learning rates are the plan's for the arm's width and optimiser, unless something sets them: where the base is a
    recipe, its rates are kept.

    Raises:
        UserError: naming the arm, for an assignment that does not fit.
    """
    setup = claim.setup
    given = assignments(claim, arm)
    try:
        base = from_dict(RunConfig, setup.base, "setup.base") if setup.base else None
        if base is None:
            begin = override(RunConfig(data=DataConfig(sources=tuple(setup.sources))), [*BASE, *given])
            config = with_rates(begin, Asked.of(given))
        else:
            data = replace(base.data, sources=tuple(setup.sources), path="") if setup.sources else base.data
            config = override(replace(base, data=data, runtime=one_thread(base.runtime)), given)
        if claim.arms[arm].damage:
            config = replace(config, data=damaged(config.data, claim.arms[arm].damage))
        asked = Asked.of(given)
        if base is None and asked.names("data.vocab_size") and not asked.names(VOCABULARY):
            config = override(config, [f"model.vocab_size={config.data.vocab_size}"])
        if config.task != RunConfig.task and PROCEDURES[claim.procedure(arm)].reads:
            raise UserError(
                f"task = {config.task}: the lab holds tokens, FLOPs and seconds equal for text alone; bench/g2p.py "
                "compares models of pairs"
            )
        every = EveryConfig(log=50, evaluate=0, sample=0, checkpoint=0, keep=1, keep_best=False, background=False)
        return replace(config, every=every, evaluate_tokens=EVALUATE_TOKENS, trackers=(), seconds=0.0)
    except UserError as error:
        raise UserError(f"arm {arm}: {error}") from None


def undamaged(claim: Claim, arm: str) -> DataConfig:
    """The data of an arm whose text is damaged, before it is."""
    whole = replace(claim.arms[arm], damage={})
    return configure(replace(claim, arms={**claim.arms, arm: whole}), arm).data


def one_thread(runtime: RuntimeConfig) -> RuntimeConfig:
    """What a recipe's runs are computed by in the lab: workers have one thread each, and what it leaves open is a CPU
    in single precision."""
    device = "cpu" if runtime.device == "auto" else runtime.device
    dtype = "float32" if runtime.dtype == "auto" else runtime.dtype
    return replace(runtime, device=device, dtype=dtype, threads=1)


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    return replace(config, steps=steps, every=replace(config.every, evaluate=max(1, steps // MEASUREMENTS)))


def size_of(config: RunConfig) -> int:
    return parameters(config.model, config.task).total


def matched(config: RunConfig, field: str, wanted: int, arm: str) -> RunConfig:
    """The configuration with the whole number in `field` that brings its parameters nearest to those wanted.

    Raises:
        UserError: if none comes near.
    """

    def at(value: int) -> tuple[RunConfig, int] | None:
        """The configuration with this value, and its parameters; None if it cannot be built."""
        try:
            made = override(config, [f"{field}={value}"])
            return made, size_of(made)
        except UserError:
            return None

    def reaches(value: int) -> bool:
        """Whether this value, or the next one that can be built (a width that heads divide), has enough."""
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
    """The configurations of all arms but for their lengths, with what is matched.

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
    """Tokens a second of each trained arm over those of the first, measured now."""
    configs, names = configs_of(claim), trained(claim)
    return {arm: speed_ratio(configs[names[0]], configs[arm]) for arm in names}


def ready(claim: Claim, speeds: Mapping[str, float]) -> list[ReadyArm]:
    """All arms as they will be run, in the claim's order.

    Args:
        speeds: where seconds are held equal, tokens a second of each trained arm over those of the first.

    Raises:
        UserError: if something that is to be held equal cannot be.
    """
    configs, names = configs_of(claim), trained(claim)
    made = []
    for arm, config in configs.items():
        builds = PROCEDURES[claim.procedure(arm)].builds
        size, flops = size_of(config) if builds else 0, 0.0
        if arm in names:
            tokens = claim.setup.tokens * claim.arms[arm].times
            config = with_steps(config, length(claim, tokens, configs[names[0]], config, speeds.get(arm, 1.0)))
            flops = config.flops_per_token * config.tokens if config.task == "causal_lm" else 0.0
        made.append(ReadyArm(arm, config, size, flops))
    return made


def length(claim: Claim, tokens: float, first: RunConfig, config: RunConfig, speed: float) -> int:
    """Steps of an arm's runs, so that its tokens, FLOPs (6 N D) or seconds are those of the first arm with so many
    tokens. Nearest whole step."""
    if claim.setup.length == "flops":
        tokens *= first.flops_per_token / config.flops_per_token
    elif claim.setup.length == "seconds":
        tokens *= speed
    return max(1, round(tokens / config.tokens_per_step))


def check_equal(sizes: Mapping[str, int]) -> None:
    """Raises UserError, naming the arms, unless their parameters are within NEAR of one another."""
    if max(sizes.values()) > (1 + NEAR) * min(sizes.values()):
        told = ", ".join(f"{arm} {size:,}" for arm, size in sizes.items())
        raise UserError(
            f"parameters are to be equal and are not: {told}; give an arm a field to match, as in "
            'match = "model.layers", or take parameters out of setup.equal'
        )


def speed_ratio(first: RunConfig, config: RunConfig) -> float:
    """Tokens per second of `config` over those of `first`, in the processor's seconds and in turns, so that neither a
    machine whose speed drifts nor what else runs on it decides."""
    if first == config:
        return 1.0
    ratios = []
    for _ in range(TURNS):
        one, other = throughput.time_in_turns([first, config], TURN_SECONDS, clock=time.process_time)
        ratios.append(other.tokens_per_second / one.tokens_per_second)
    return statistics.median(ratios)


def timed(arm: ReadyArm) -> ReadyArm:
    """The same with the seconds that a run takes on one thread, measured."""
    speed = throughput.time_steps(arm.config, GLANCE).tokens_per_second
    return replace(arm, seconds=arm.config.tokens / speed)
