"""The commands `lab list`, `lab run`, `lab report`, `lab new`, `lab compare` and `lab account`."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import tyro

from isoflop.cli.arguments import JsonWithProgress, Sources, Trusted
from isoflop.errors import UserError

if TYPE_CHECKING:
    from isoflop.lab.claim import Claim
    from isoflop.lab.course import Planned
    from isoflop.lab.outcome import Outcome
    from isoflop.lab.workers import Pool

Folder = Annotated[Path, tyro.conf.arg(metavar="DIR", help="the folder of runs, verdicts and pages")]
BudgetOption = Annotated[
    str, tyro.conf.arg(metavar="BUDGET", help_behavior_hint="(default: the claim's)", help="as in 90s, 30m or 2h")
]
WorkersOption = Annotated[
    int | None,
    tyro.conf.arg(
        metavar="N",
        help_behavior_hint="(default: 2; with --ray one per processor of the cluster)",
        help="runs at a time, of one thread each",
    ),
]
RayOption = Annotated[
    str,
    tyro.conf.arg(
        metavar="auto|HOST:PORT|local",
        help_behavior_hint="",
        help="run on the machines of a Ray cluster: the one that this machine belongs to, or an address",
    ),
]


def lab() -> None:
    """Test claims about transformers by experiment: lab list, run, report, new, compare, account."""
    raise UserError("lab needs a command: isoflop lab list, run, report, new, compare or account")


def show(text: str, indent: int = 0, file: TextIO | None = None) -> None:
    """Print a text, wrapped between words to the width of the terminal, with continuation lines indented."""
    from isoflop.terminal import width_without_terminal, wrapped

    file = file or sys.stdout
    width = shutil.get_terminal_size().columns if file.isatty() else width_without_terminal()
    print("\n".join(wrapped(text, width, indent)), file=file, flush=True)


def show_list(*, out: Folder = Path("lab"), json: JsonWithProgress = False) -> None:
    """List the claims that come with isoflop, and the verdicts so far."""
    from isoflop.files import to_json
    from isoflop.lab.claim import all_claims
    from isoflop.lab.recorded import claims_there, state_of
    from isoflop.lab.store import Store

    store, shipped = Store(out), all_claims()
    on_record = {claim.name: claim for claim in claims_there(store)}
    there = {name: state_of(claim, store) for name, claim in on_record.items()}
    # a verdict on another claim of the same name, such as one of an earlier isoflop, is none on today's sentence
    others = {one.name for one in shipped if one.name in there and not one.same_but_for_text(on_record[one.name])}
    rows: list[dict[str, Any]] = [
        {
            "name": claim.name,
            "statement": claim.statement,
            "minutes": claim.setup.minutes if claim.trains else 1.0,
            "trains": claim.trains,
            "full": bool(claim.full),
            "needs": list(claim.needs),
            "verdict": None if claim.name in others else there.get(claim.name),
        }
        for claim in shipped
    ]
    if json:
        print(to_json(rows), end="")
        return
    for row in rows:
        cost = f"up to {row['minutes']:g} min" if row["trains"] else "seconds"
        files = "".join(f" {name}=FILE" for name in row["needs"])
        cost += f"; needs{files}" if files else ""
        other = f"not run yet (another version of it: {there[row['name']]})" if row["name"] in others else ""
        show(f"{row['name']:22} {row['statement']}", indent=23)
        show(f"{'':22} {cost}; {row['verdict'] or other or 'not run yet'}")
    for name in there:
        if name not in {row["name"] for row in rows}:
            show(f"{name:22} {there[name]}")
    show("run one: isoflop lab run NAME; one of your own: isoflop lab new NAME")


def run(
    claim: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="CLAIM", help="a name of `lab list`, or a claim's file")
    ],
    sources: Sources = (),
    *,
    budget: BudgetOption = "",
    full: Annotated[
        bool, tyro.conf.arg(help="at larger sizes too, as the claim's [sizes] and [full] say; takes hours")
    ] = False,
    workers: WorkersOption = None,
    ray: RayOption = "",
    out: Folder = Path("lab"),
    dry_run: Annotated[bool, tyro.conf.arg(help="say what would be run, and run nothing")] = False,
    json: JsonWithProgress = False,
    trust_code: Trusted = (),
) -> int:
    """Put a claim to the test. Exit code 10: supported, 11: refuted, 12: equivalent, 13: undecided."""
    from isoflop.errors import quoted
    from isoflop.lab.claim import read_claim

    read = read_claim(claim).with_sources(sources)
    command = " ".join(["isoflop lab run", quoted(claim), *(["--full"] if full else []), *map(quoted, sources)])
    if not full:
        pool = pool_of(workers, ray, json, trust_code)
        return ended([carry_out(read, command, seconds_of(budget), pool, out, dry_run, json, trust_code)], json)

    read.as_full()  # refuses a claim that has no larger size
    sizes, say, ends = read.all_sizes(), speaker(json), time.monotonic() + seconds_of(budget)
    hours = seconds_of(budget) / 3600 or sum(one.setup.minutes for one in sizes) / 60
    say(f"--full: {len(sizes)} sizes, the smallest first, up to {hours:.1f} h in all; the same command resumes")
    results: list[Outcome | Planned] = []
    for number, one in enumerate(sizes, 1):
        last, left = number == len(sizes), max(1.0, ends - time.monotonic()) if budget else 60 * one.setup.minutes
        seconds = left if last else min(left, 60 * one.setup.minutes)
        say(f"size {number} of {len(sizes)}: {one.name}")
        pool = pool_of(workers, ray, json, trust_code)
        results.append(carry_out(one, command, seconds, pool, out, dry_run, json, trust_code))
    return ended(results, json)


def compare(
    sources: Sources = (),
    *,
    arm: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="what an arm changes, as in norm=rms; several in quotes; repeat it"),
    ] = (),
    base: Annotated[
        str,
        tyro.conf.arg(
            metavar="FILE.py:NAME|FILE.json",
            help_behavior_hint="",
            help="the first arm: a recipe or config.json; without it a small model",
        ),
    ] = "",
    set: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FIELD=VALUE", help="for all arms, as in model.layers=2"),
    ] = (),
    equal: Annotated[str, tyro.conf.arg(metavar="tokens|flops|seconds", help="what is held equal")] = "seconds",
    budget: Annotated[str, tyro.conf.arg(metavar="BUDGET", help="for all runs together")] = "30m",
    tokens: Annotated[
        float,
        tyro.conf.arg(help_behavior_hint="", help="tokens of a run of the base; by default as the budget allows"),
    ] = 0.0,
    smallest: Annotated[float, tyro.conf.arg(help="the smallest difference that matters, in bits per byte")] = 0.02,
    rule: Annotated[str, tyro.conf.arg(metavar="fixed|anytime", help="anytime: look after every pair")] = "fixed",
    no_tune: Annotated[bool, tyro.conf.arg(help="use the planned learning rates for all arms")] = False,
    name: Annotated[str, tyro.conf.arg(help_behavior_hint="", help="what the comparison is called")] = "",
    workers: WorkersOption = None,
    ray: RayOption = "",
    out: Folder = Path("lab"),
    dry_run: Annotated[bool, tyro.conf.arg(help="say what would be run, and run nothing")] = False,
    json: JsonWithProgress = False,
    trust_code: Trusted = (),
) -> int:
    """Is a change better than the base? Exit code 10: yes, 11: worse, 12: no difference that matters, 13: undecided.

    The base is the first arm; each --arm is compared with it."""
    from isoflop.lab.compare import Question, claim_of, command_of
    from isoflop.lab.store import Store
    from isoflop.model.registry import trust_code as trusting
    from isoflop.recipe import load_recipe

    is_json = base.endswith(".json")
    question = Question(
        arms=arm,
        sources=sources,
        base=load_recipe("" if is_json else base, Path(base) if is_json else None),
        base_words=base,
        set=set,
        equal=equal,
        tokens=tokens,
        smallest=smallest,
        rule=rule,
        tune=not no_tune,
        name=name,
    )
    pool = pool_of(workers, ray, json, trust_code)
    with trusting(*trust_code):
        claim = claim_of(question, seconds_of(budget), pool.at_once, Store(out))
    given = command_of(question, claim)
    return ended([carry_out(claim, given, seconds_of(budget), pool, out, dry_run, json, trust_code)], json)


def seconds_of(budget: str) -> float:
    """Seconds of a budget; 0 for none.

    Raises:
        UserError: for one that is not in seconds.
    """
    from isoflop.budget import parse_budget

    if not budget:
        return 0.0
    parsed = parse_budget(budget)
    if parsed.kind != "seconds" or parsed.more:
        raise UserError(f"--budget {budget} is in {parsed.kind}; the lab's is time for all runs together, as in 30m")
    return parsed.amount


def speaker(json: bool, verbatim: bool = False) -> Callable[[str], None]:
    """Prints a line of what happens; to standard error if the result is JSON. `verbatim`: without wrapping it, as what
    is to be copied needs."""

    def say(text: str) -> None:
        file = sys.stderr if json else sys.stdout
        if verbatim:
            print(text, file=file, flush=True)
        else:
            show(text, indent=2, file=file)

    return say


def pool_of(workers: int | None, ray: str, json: bool, trusted: tuple[str, ...]) -> "Pool":
    """Who runs the runs: processes of this machine, or a Ray cluster.

    Raises:
        UserError: for a negative number, or if there is no such cluster.
    """
    from isoflop.lab.cluster import Cluster
    from isoflop.lab.workers import Workers

    if workers is not None and workers < 0:
        raise UserError(f"--workers {workers} is negative; 2 runs two at a time")
    if ray:
        return Cluster(ray, workers or 0, trusted, speaker(json))
    return Workers(2 if workers is None else workers, trusted)


def carry_out(
    claim: "Claim",
    command: str,
    budget: float,
    pool: "Pool",
    out: Path,
    dry_run: bool,
    json: bool,
    trusted: tuple[str, ...],
) -> "Outcome | Planned":
    """Run a claim, write its page, say the verdict. Returns the result, or what would be run.

    Args:
        command: that repeats it.
        budget: in seconds; 0: the claim's own.
        pool: who runs it.
    """
    from isoflop.lab.course import Planned
    from isoflop.lab.front import write_front
    from isoflop.lab.page import write_page
    from isoflop.lab.recorded import all_recorded
    from isoflop.lab.run import run_claim
    from isoflop.lab.store import Store
    from isoflop.lab.wording import verdict_line, versions_words
    from isoflop.model.registry import trust_code as trusting

    store, say, copied = Store(out), speaker(json), speaker(json, verbatim=True)
    with trusting(*trusted):
        outcome = run_claim(
            claim,
            store,
            budget=budget,
            workers=pool,
            say=say,
            trusted=trusted,
            plan_only=dry_run,
            command=" ".join([command, *(f"--trust-code {package}" for package in trusted)]),
        )
        if isinstance(outcome, Planned):
            return outcome
        recorded = all_recorded(store, say)
        page = write_page(outcome, recorded)
        write_front(recorded, out)
    say(verdict_line(outcome))
    if warning := versions_words(outcome.study.versions(outcome.complete))[1]:
        say(warning)
    if wanted := outcome.settle():
        more = wanted["command"] if claim.trains else f"pairs = {wanted['pairs']} in the claim's file"
        copied(f"to settle it: about {wanted['pairs']} pairs, {wanted['more_pairs']} more: {more}")
    copied(f"page: {page}")
    return outcome


def ended(results: "Sequence[Outcome | Planned]", json: bool) -> int:
    """Print the result of the last of a claim's sizes as JSON if that is asked for, with a list of all where there are
    several. Returns its exit code; 0 where nothing was run."""
    from isoflop.files import to_json
    from isoflop.lab.course import Planned

    last, told = results[-1], [result.to_dict() for result in results]
    if json:
        print(to_json({**told[-1], **({"sizes": told} if len(told) > 1 else {})}), end="")
    return 0 if isinstance(last, Planned) else last.exit_code


def report(
    claims: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[CLAIM ...]", help_behavior_hint="", help="those to write anew; none: all that are there"
        ),
    ] = (),
    *,
    out: Folder = Path("lab"),
    json: JsonWithProgress = False,
    trust_code: Trusted = (),
) -> None:
    """Write the pages of claims from what is on record, and the front page of all.

    An unfinished claim's page shows how far it is, and an interval only under rule = anytime."""
    from isoflop.files import to_json
    from isoflop.lab.front import write_front
    from isoflop.lab.page import write_page
    from isoflop.lab.recorded import all_recorded, claims_there, one_there
    from isoflop.lab.store import Store
    from isoflop.lab.wording import verdict_line
    from isoflop.model.registry import trust_code as trusting

    store = Store(out)
    with trusting(*trust_code):
        if not claims_there(store):
            raise UserError(f"{out} has no verdicts yet: run a claim first, as in `isoflop lab run linear`")
        outcomes = {found.study.claim.name: found for found in all_recorded(store, speaker(json))}
        named = [Path(name).stem for name in claims] or list(outcomes)
        for name in named:
            if name not in outcomes:
                one_there(name, store)
                raise UserError(f"{name} has nothing to report: its arms are still being timed, or it cannot be read")
            page = write_page(outcomes[name], list(outcomes.values()))
            if not json:
                show(f"{name:22} {verdict_line(outcomes[name])}", indent=23)
                print(f"{'':22} {page}")
        front = write_front(list(outcomes.values()), out)
        print(to_json([outcomes[name].to_dict() for name in named]) if json else f"{front}\n", end="")


def new(
    name: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="name of the claim; writes NAME.toml")
    ],
) -> None:
    """Write the template of a claim, to be filled in."""
    from isoflop.files import disk_errors, write_text
    from isoflop.lab.claim import CLAIMS, NAME, check_own_name
    from isoflop.untrusted import read_text

    stem = name.removesuffix(".toml")
    path = Path(f"{stem}.toml")
    if not NAME.fullmatch(path.stem):
        raise UserError(f"{name!r} is not a name for a claim: letters, digits, _ and - only, as in my-claim")
    check_own_name(path.stem, f"isoflop lab new {name}")
    if path.exists():
        raise UserError(f"{path} exists: name another one, or remove it")
    text = read_text(CLAIMS.parent / "template.toml").replace("NAME.toml", path.name)
    with disk_errors(str(path)):
        write_text(path, text)
    print(f"{path}: change it, then isoflop lab run {path}")


def account(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="the last run of a chain of --init")],
    *,
    json: JsonWithProgress = False,
) -> None:
    """Show the cost of each stage of a chain of runs and the share of pretraining, next to published cases."""
    from isoflop.files import to_json
    from isoflop.lab.account import PUBLISHED, chain, shares
    from isoflop.report.words import duration, percent

    stages = chain(run)
    by_flops, by_seconds = shares(stages, "flops"), shares(stages, "seconds")
    if json:
        rows = [
            {**stage.to_dict(), "share_of_flops": a, "share_of_seconds": b}
            for stage, a, b in zip(stages, by_flops, by_seconds, strict=True)
        ]
        published = [{"case": name, "share": share, "source": source} for name, share, source in PUBLISHED]
        print(to_json({"stages": rows, "published": published}), end="")
        return
    print(f"{'run':24} {'':18} {'FLOPs':>10} {'share':>8} {'time':>12} {'share':>8}")
    for stage, a, b in zip(stages, by_flops, by_seconds, strict=True):
        flops = "–" if stage.flops is None else f"{stage.flops:.2e}"
        print(
            f"{stage.name:24} {stage.kind:18} {flops:>10} {percent(a):>8} {duration(stage.seconds):>12} {percent(b):>8}"
        )
    print("\nshare of pretraining in published final models:")
    for case, share, source in PUBLISHED:
        print(f"{case:24} {percent(share, 0):>6}   {source}")


LAB: dict[str, Callable[..., int | None]] = {
    "list": show_list,
    "run": run,
    "report": report,
    "new": new,
    "compare": compare,
    "account": account,
}
