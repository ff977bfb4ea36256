"""The commands `plan fit`, `plan predict` and `plan compare` (scaling laws from tables of runs), `plan advise` (what to
train, here or on other machines) and `plan score` (were forecasts right?)."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from isoflop.errors import UserError

Json = Annotated[bool, tyro.conf.arg(help="print one JSON object")]
FitArgument = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar="FIT", help="a file of `isoflop plan fit`, or a published law")
]


def plan() -> None:
    """Fit scaling laws to a table of runs and predict what a budget buys, here or on other machines: plan fit, plan
    predict, plan compare, plan advise. Score the forecasts of your own runs: plan score."""
    raise UserError(f"plan needs a command: isoflop plan {', '.join(list(PLAN)[:-1])} or {list(PLAN)[-1]}")


def fit(
    points: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="POINTS.csv", help="a table with a header and one row per run"),
    ],
    *,
    n: Annotated[str, tyro.conf.arg(metavar="COL", help="the column of parameters")],
    d: Annotated[str, tyro.conf.arg(metavar="COL", help="the column of tokens")],
    loss: Annotated[str, tyro.conf.arg(metavar="COL", help="the column of final losses")],
    flops: Annotated[
        str, tyro.conf.arg(metavar="COL", help_behavior_hint="", help="the column of training FLOPs; without it 6 N D")
    ] = "",
    counts: Annotated[
        str,
        tyro.conf.arg(
            metavar="total|matmul|blocks|unstated",
            help="what N counts: all parameters; blocks and head, each weight that multiplies once; blocks alone",
        ),
    ] = "unstated",
    where: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="COL=VALUE", help="only rows with that value; may be given several times"),
    ] = (),
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FIT.json", help_behavior_hint="", help="store the fit, for plan predict")
    ] = None,
    samples: Annotated[
        int | None,
        tyro.conf.arg(
            metavar="INT", help_behavior_hint="", help="of the bootstrap behind the intervals; by default 1000"
        ),
    ] = None,
    seed: Annotated[int, tyro.conf.arg(help="of the bootstrap")] = 0,
    json: Json = False,
) -> None:
    """Fit L(N, D) = E + A/N^alpha + B/D^beta to a table of runs, with intervals and warnings."""
    from isoflop.cli.show_laws import show_study
    from isoflop.files import write_text
    from isoflop.plan.law.bootstrap import SAMPLES
    from isoflop.plan.law.counting import Counts
    from isoflop.plan.law.points import Columns, read_points
    from isoflop.plan.law.study import study, to_dict, to_text

    samples = SAMPLES if samples is None else samples
    if samples < 20:
        raise UserError(f"--samples {samples} is too few for intervals: give at least 20")
    if out is not None and out.exists():
        raise UserError(f"{out} exists: name another file, or remove it")
    counting = Counts(counts, "table" if flops else "6nd")
    fitted = study(read_points(points, Columns(n, d, loss, flops, where), counting), samples, seed)
    stored = to_dict(fitted)
    stored["columns"] = {"file": points.name, "n": n, "d": d, "loss": loss, "flops": flops, "where": list(where)}
    text = to_text(stored)
    if out is not None:
        write_text(out, text)
    if json:
        print(text, end="")
    else:
        show_study(fitted, points.name, out)


def predict(
    fit: FitArgument,
    *,
    budget: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="FLOPS [FLOPS ...]", help_behavior_hint="", help="what do these buy?")
    ] = (),
    loss: Annotated[
        tuple[float, ...],
        tyro.conf.arg(metavar="LOSS [LOSS ...]", help_behavior_hint="", help="which budget do these need?"),
    ] = (),
    plain: Annotated[
        bool, tyro.conf.arg(help="use the law fitted to all runs, not the method that predicted held-out budgets best")
    ] = False,
    json: Json = False,
) -> None:
    """Predict what a budget buys, or which budget a loss needs, with intervals, compared with D = 20 N."""
    from isoflop.cli.show_laws import needed_dict, prediction_dict, show_needed, show_prediction
    from isoflop.files import to_json
    from isoflop.plan.law.predict import budget_for
    from isoflop.plan.law.predict import predict as predict_budget
    from isoflop.plan.law.study import read_basis

    if not budget and not loss:
        raise UserError("plan predict needs --budget FLOPS or --loss LOSS, as in --budget 1e21")
    basis, counting = read_basis(fit, plain)
    bought = [predict_budget(basis, flops_of(text)) for text in budget]
    needed = [budget_for(basis, value) for value in loss]
    if json:
        header = {"way": basis.way, "counting": counting}
        budgets = [prediction_dict(prediction) for prediction in bought]
        losses = [needed_dict(need) for need in needed]
        print(to_json({**header, "budgets": budgets, "losses": losses}), end="")
        return
    print(f"by {basis.way}\n{counting}")
    for prediction in bought:
        show_prediction(prediction, basis)
    for need in needed:
        show_needed(need, basis)


def flops_of(text: str) -> float:
    """The FLOPs of a budget.

    Raises:
        UserError: for a budget that is not in FLOPs.
    """
    from isoflop.budget import parse_budget

    parsed = parse_budget(text)
    if parsed.kind != "flops" or parsed.more:
        raise UserError(f"--budget {text} is in {parsed.kind}; a law takes only FLOPs, as in 1e21")
    return parsed.amount


def compare(
    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="MODEL:TOKENS [...]", help="a preset or a number of parameters, and tokens: 70e9:1.4e12"),
    ],
    *,
    law: Annotated[
        str, tyro.conf.arg(metavar="FIT", help="a file of `isoflop plan fit`, or a published law")
    ] = "besiroglu2024",
    json: Json = False,
) -> None:
    """Compare runs by a law: the terms of size and tokens in their losses, and what their compute could have bought."""
    from dataclasses import asdict

    from isoflop.cli.show_laws import show_compared
    from isoflop.files import to_json
    from isoflop.plan.law.predict import compare as compare_run
    from isoflop.plan.law.study import read_basis

    basis, counting = read_basis(law, plain=True)
    compared = [compare_run(*run_of(text), basis.law) for text in runs]
    if json:
        result = {"law": basis.way, "counting": counting, "runs": [asdict(run) for run in compared]}
        print(to_json(result), end="")
    else:
        show_compared(compared, basis.law, basis.way, counting)


def run_of(text: str) -> tuple[str, float, float]:
    """Name, parameters and tokens of MODEL:TOKENS."""
    model, sign, tokens = text.rpartition(":")
    if not (sign and model):
        raise UserError(f"{text!r} is not MODEL:TOKENS, as in chinchilla-70b:1.4e12 or 70e9:1.4e12")
    d = positive(tokens)
    if d is None:
        raise UserError(f"{tokens!r} in {text!r} is not a positive number of tokens; write it as in 1.4e12 or 300e9")
    n = positive(model)
    if n is None:
        n = size_of_preset(model, text)
    return model, n, d


def positive(text: str) -> float | None:
    """A positive finite number; None for other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def size_of_preset(name: str, text: str) -> float:
    """The parameters of a preset. `text` is the whole argument, for the message."""
    from isoflop.config import nearest
    from isoflop.model.count import parameters
    from isoflop.model.presets import PRESETS

    if name not in PRESETS:
        presets = ", ".join(PRESETS)
        raise UserError(
            f"{name!r} in {text!r} is neither a number of parameters nor a preset ({presets}){nearest(name, PRESETS)}"
        )
    return float(parameters(PRESETS[name]()).total)


def advise(
    sources: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="SOURCE", help="the available text, for its size; none: unlimited"),
    ] = (),
    *,
    budget: Annotated[
        str, tyro.conf.arg(metavar="72h", help="time, or money at a price per hour of all GPUs: $1440@20/h")
    ],
    machine: Annotated[
        str,
        tyro.conf.arg(
            metavar="8xh100",
            help_behavior_hint="",
            help="GPUS x NAME of h100, h200, b200 or a100, in nodes; without it the machine at hand, timed",
        ),
    ] = "",
    price: Annotated[
        float, tyro.conf.arg(metavar="2.5", help_behavior_hint="", help="dollars per GPU hour; without it no dollars")
    ] = 0.0,
    share: Annotated[
        float, tyro.conf.arg(help="share of its peak that one GPU reaches alone, as measured; 0: isoflop's own")
    ] = 0.0,
    law: Annotated[
        str,
        tyro.conf.arg(
            metavar="FIT",
            help_behavior_hint="(default: besiroglu2024)",
            help="with --machine: a file of `isoflop plan fit`, or a published law",
        ),
    ] = "",
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="without --machine: a field of the configuration that is decided"),
    ] = (),
    json: Json = False,
) -> None:
    """Advise what to train: on this machine, with the reason for each choice, or on other machines, calculated."""
    if not machine:
        refuse_here({"--price": price, "--share": share, "--law": law})
        here(sources, budget, set, json)
        return
    if set:
        raise UserError("--set does not go with --machine, where nothing is configured: leave one of them out")
    law = law or "besiroglu2024"
    from isoflop.budget import parse_budget
    from isoflop.cli.show_cluster import TIMES, advice_dict, show_advice
    from isoflop.files import to_json
    from isoflop.plan.cluster.advise import SHARE, Job
    from isoflop.plan.cluster.advise import advise as advise_job
    from isoflop.plan.cluster.machines import parse_machine
    from isoflop.plan.law.forms import PUBLISHED
    from isoflop.plan.law.study import read_counted

    gpus, name = parse_machine(machine)
    time = parse_budget(budget)
    if time.kind != "seconds" or time.more:
        raise UserError(f"--budget {budget} is not a time: write 72h, or $1440@20/h; for FLOPs see `plan predict`")
    if not 0 <= price < float("inf"):
        raise UserError(f"--price {price:g} is not a number of dollars per GPU hour, as in 2.5")
    if not 0 <= share <= 1:
        raise UserError(f"--share {share:g} is not a share of the peak between 0 and 1, as in 0.45")

    basis, counts = read_counted(law, plain=False)
    price = price or 3600 * time.dollars / (gpus * time.amount)
    job = Job(gpus, name, time.amount, price, share or SHARE, size_of(sources))
    by_factor = [advise_job(job.times(factor), basis, counts, PUBLISHED.get(law)) for factor in TIMES]
    advice = by_factor[TIMES.index(1.0)]
    if json:
        others = {"half": advice_dict(by_factor[0]), "twice": advice_dict(by_factor[-1])}
        print(to_json({**advice_dict(advice), "law": basis.way, "counting": counts.words(), **others}), end="")
    else:
        show_advice(advice, by_factor, time.words(), basis.way)


def refuse_here(given: dict[str, float | str]) -> None:
    """Raises UserError for an option that is about machines that are not at hand."""
    for name, value in given.items():
        if value:
            raise UserError(f"{name} goes with --machine, as in --machine 8xh100; leave it out for the machine at hand")


def here(sources: tuple[str, ...], budget: str, set: tuple[str, ...], json: bool) -> None:
    """Advice for the machine at hand."""
    import sys

    from isoflop.budget import parse_budget
    from isoflop.cli.show_here import here_dict, show_here
    from isoflop.data.config import DataConfig
    from isoflop.files import to_json
    from isoflop.plan.asked import Asked
    from isoflop.plan.here import advise_here
    from isoflop.screen import Screen
    from isoflop.trainer import RunConfig

    screen, asked = Screen(quiet=json, is_result=not json), Asked.of(set)
    config = asked.apply(RunConfig(data=DataConfig(sources=sources)))

    def say(line: str) -> None:
        if json:
            print(line, file=sys.stderr, flush=True)
        else:
            screen.say(line)

    found = advise_here(parse_budget(budget), config, asked, say, None if json else screen.progress)
    if json:
        print(to_json(here_dict(found)), end="")
        return
    show_here(screen, found)
    screen.require_shown()


def size_of(sources: tuple[str, ...]) -> float:
    """The estimated bytes of text in some sources; infinite for none."""
    from isoflop.data.config import DataConfig
    from isoflop.data.survey import survey_sources

    return float(survey_sources(DataConfig(sources=sources)).bytes) if sources else float("inf")


def score(*, json: Json = False) -> None:
    """Score the forecasts of your runs: coverage, width and bias, from $ISOFLOP_HOME/ledger.jsonl."""
    from isoflop.files import home, to_json
    from isoflop.plan.ledger import score as score_ledger
    from isoflop.plan.ledger import to_lines
    from isoflop.records.ledger import read_ledger

    scores = score_ledger(read_ledger(home() / "ledger.jsonl"))
    if json:
        print(to_json(scores.to_dict()), end="")
    else:
        print("\n".join(to_lines(scores)))


PLAN: dict[str, Callable[..., None]] = {
    "fit": fit,
    "predict": predict,
    "compare": compare,
    "advise": advise,
    "score": score,
}
