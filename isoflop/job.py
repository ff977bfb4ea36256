"""Whole jobs: raw text and a budget in, a trained GPT and its report out.

pretrain    survey, measure the machine, plan, prepare, train, measure what came out, report
train       a configuration that is already decided, and the same from there on
resume      go on with a run, or with more budget from before its decay
evaluate    held-out loss of any run on any text
"""

import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isoflop import checkpoint
from isoflop.budget import Budget, parse_budget
from isoflop.config import from_dict, load_json, override
from isoflop.data.config import DataConfig
from isoflop.data.corpus import parse_sources
from isoflop.data.loader import Loader
from isoflop.data.prepare import Prepared, Progress, documents, open_prepared, prepare, survey
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.files import disk_errors, home, write_json, write_text
from isoflop.generate.engine import generate
from isoflop.measure import HeldOut, measure
from isoflop.model.config import ModelConfig
from isoflop.model.gpt import GPT
from isoflop.optim.schedules import Decision, Timetable
from isoflop.plan.advise import Advice, draw, settle
from isoflop.plan.prior import Expectation, lzma_bits_per_byte
from isoflop.records import RunFolder, find_runs, read_lines, read_run
from isoflop.report.page import write_report
from isoflop.runtime import make_runtime, measure_peak, peak_memory
from isoflop.trainer import RunConfig, RunResult
from isoflop.trainer import train as train_steps
from isoflop.trainer.hooks import HeldOut as HeldOutHook
from isoflop.trainer.hooks import Hook, Samples
from isoflop.trainer.trackers import make_trackers

FINAL_TOKENS = 4_000_000  # held-out tokens measured at the end; all of them where there are fewer
CHUNK_TOKENS = 1_000_000  # tokens of other people's text held at once by `evaluate`


def nothing(*_: Any) -> None:
    """A listener that does not listen."""


@dataclass
class Listener:
    """Who is told what while a job works.

    Attributes:
        say: gets one line of text at a time.
        progress: told how far the preparation of the data is.
        planned: gets the plan before it is carried out.
        hooks: told of every step.
        peak: told the machine's measured FLOP/s before training.
    """

    say: Callable[[str], None] = nothing
    progress: Progress | None = None
    planned: Callable[[Advice], None] = nothing
    hooks: Sequence[Hook] = ()
    peak: Callable[[float], None] = nothing


@dataclass
class Phases:
    """Seconds by phase; preparation, calibration, the final measurement and the report are outside the budget."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> "Stopwatch":
        return Stopwatch(self, name)


@dataclass
class Stopwatch:
    phases: Phases
    name: str

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        spent = time.monotonic() - self.started
        self.phases.seconds[self.name] = round(self.phases.seconds.get(self.name, 0.0) + spent, 2)


def pretrain(
    sources: Sequence[str] = (),
    budget: str = "3m",
    out: Path | str | None = None,
    *,
    base: RunConfig | None = None,
    assignments: Sequence[str] = (),
    heldout: Sequence[str] = (),
    init: Path | str = "",
    strict: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> RunResult | Advice:
    """Pretrain the best GPT that `budget` buys on `sources`.

    Args:
        sources: files, folders, globs or "-", each as PATH, NAME=PATH or NAME=PATH:WEIGHT; none: the running Python's
            standard library.
        budget: "90s", "3m", "2h", "1e15" (FLOPs), "5e6tok", "2000steps": see isoflop/budget.py.
        out: the run folder, which must not hold a run; by default a new one in `runs/`.
        base: a configuration whose model and rates are kept, and only its length chosen.
        assignments: "dotted.field=value" strings that overrule the plan.
        heldout: text to measure on, in place of a share of the sources.
        init: a run whose weights and tokenizer to go on from.
        strict: skipped files are errors.
        dry_run: return the plan and train nothing.

    Returns:
        What the run came to, or the plan with `dry_run`.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener = listener or Listener()
    allowance = parse_budget(budget)
    if allowance.more:
        raise UserError(f"budget {budget!r} is more of something: it goes with --resume RUN")
    phases = Phases()
    start = with_sources(base or RunConfig(), sources, heldout, strict)
    given_vocabulary = 0
    if init:
        start, given_vocabulary = start_from(start, init)
    data = override(start, assignments).data
    folder = RunFolder(Path(out) if out else new_folder_name(data))
    if not dry_run:
        folder.refuse_used()
    with phases.time("prepare"):
        found = survey(data)
    with phases.time("calibrate"):
        sketch = draw(
            allowance,
            start,
            assignments,
            found.bytes,
            listener.say,
            fixed_model=base is not None or bool(init),
            fixed_rates=base is not None,
            fixed_vocabulary=given_vocabulary or tokenizer_size(data, base),
        )
    with phases.time("prepare"):
        share = 0 if data.max_train_bytes or found.bytes <= sketch.train_bytes else int(sketch.train_bytes)
        data = replace(data, vocab_size=sketch.vocabulary, max_train_bytes=share or data.max_train_bytes)
        prepared = prepare(data, progress=listener.progress)
        account = prepared.account()
    unique = sum(prepared.train_tokens(name) for name in prepared.sources)
    sketch = replace(sketch, base=replace(sketch.base, data=data))
    lzma_bpb = lzma_bits_per_byte(found.sample)
    advice = settle(
        sketch,
        unique,
        prepared.vocab_size,
        account["bytes_per_token"],
        lzma_bpb,
        from_scratch=not init and base is None,
    )
    listener.planned(advice)
    listener.say(seconds_line(phases))
    if dry_run:
        return advice
    plan = {**advice.to_dict(), "lzma_bits_per_byte": lzma_bpb, "unique_tokens": unique}
    return carry_out(advice.config, folder, prepared, listener, phases, plan=plan)


def train(
    config: RunConfig,
    out: Path | str | None = None,
    *,
    listener: Listener | None = None,
    expected: Expectation | None = None,
) -> RunResult:
    """Train a configuration as it is: a recipe, or a run's config.json.

    Raises:
        UserError: for anything that cannot be used, before anything is written.
    """
    listener = listener or Listener()
    phases = Phases()
    folder = RunFolder(Path(out) if out else new_folder_name(config.data))
    folder.refuse_used()
    with phases.time("prepare"):
        prepared = prepare(config.data, progress=listener.progress)
    plan = {"kind": "given", "steps": config.steps, "tokens": config.tokens}
    if expected:
        plan["expected"] = expected.to_dict()
    return carry_out(config, folder, prepared, listener, phases, plan=plan)


def resume(out: Path | str, budget: str = "", *, listener: Listener | None = None) -> RunResult:
    """Go on with a run from its last checkpoint; with a budget such as "+1h", from before its decay.

    Raises:
        UserError: if there is no run, it is finished and no budget is added, or its data changed.
    """
    listener = listener or Listener()
    run = read_run(out)
    config = from_dict(RunConfig, run.config)
    phases = Phases(dict(run.result.get("phases", {})))
    if run.status == "running":
        raise UserError(f"{out} is being trained by another process")
    if budget:
        extend(run.folder, config, parse_budget(budget))
    elif run.status == "finished":
        raise UserError(
            f"{out} is finished; to train on, add to its budget: isoflop train --resume {out} --budget +10m"
        )
    with phases.time("prepare"):
        prepared = data_of(run.folder, config.data, listener.progress)
    return carry_out(config, run.folder, prepared, listener, phases, plan=run.plan, resume=True)


def carry_out(
    config: RunConfig,
    folder: RunFolder,
    prepared: Prepared,
    listener: Listener,
    phases: Phases,
    *,
    plan: dict[str, Any],
    resume: bool = False,
) -> RunResult:
    """Train, measure, write result and report, add a line to the ledger."""
    environment = read_run(folder.path).environment if resume else {}
    if not environment.get("peak"):
        with phases.time("calibrate"):
            environment = {
                "peak": plan.get("peak")
                or measure_peak(config.runtime.device if config.runtime.device != "auto" else "cpu")
            }
    hooks: list[Hook] = [*make_trackers(config.trackers), *listener.hooks]
    dtype = config.runtime.dtype if config.runtime.dtype != "auto" else "float32"
    listener.peak(environment["peak"].get(dtype, 0.0))
    result = train_steps(
        config,
        folder.path,
        hooks=[HeldOutHook(tuple(hooks)), Samples(), *hooks],
        prepared=prepared,
        plan=plan,
        environment=environment,
        resume=resume,
    )
    phases.seconds["train"] = round(result.seconds, 2)
    with phases.time("evaluate"):
        reached = measure_last(folder, prepared, config)
    with disk_errors(f"the run folder {folder.path}"):
        write_result(folder, config, prepared, result, reached, environment, plan, phases)
        folder.event("finished", step=result.step)
        started = time.monotonic()
        write_report([folder.path])
        phases.seconds["report"] = round(time.monotonic() - started, 2)
        write_result(folder, config, prepared, result, reached, environment, plan, phases)
    add_to_ledger(folder)
    return result


def measure_last(folder: RunFolder, prepared: Prepared, config: RunConfig) -> HeldOut:
    """Held-out loss of the last checkpoint, over all held-out text up to FINAL_TOKENS."""
    model, _, snapshot = checkpoint.load_model(folder.path)
    run_as = from_dict(RunConfig, snapshot.config).runtime
    runtime = make_runtime(run_as.device, run_as.dtype, run_as.threads)
    model.to(runtime.device)
    tokenizer = prepared.tokenizer
    return measure(model, prepared.heldout(), tokenizer.token_bytes(), tokenizer.eot, runtime, FINAL_TOKENS)


def write_result(
    folder: RunFolder,
    config: RunConfig,
    prepared: Prepared,
    result: RunResult,
    reached: HeldOut,
    environment: dict[str, Any],
    plan: dict[str, Any],
    phases: Phases,
) -> None:
    """result.json: what the run came to, beside what was expected of it."""
    loader = Loader(prepared, config.model.context, config.batch.sequences, config.seed)
    run = read_run(folder.path)
    peak = environment.get("peak", {}).get(run.config["runtime"]["dtype"], 0.0)
    rate = result.flops / result.seconds if result.seconds else 0.0
    expected = plan.get("expected")
    verdict = Expectation(**expected).verdict(reached.bits_per_byte) if expected else None
    write_json(
        folder.result,
        {
            "step": result.step,
            "loss": result.loss,
            "heldout": reached.to_dict(),
            "seconds": result.seconds,
            "tokens": result.tokens,
            "flops": result.flops,
            "tokens_per_second": result.tokens / result.seconds if result.seconds else 0.0,
            "peak_share": rate / peak if peak else None,
            "peak_memory_bytes": peak_memory(run.config["runtime"]["device"]),
            "data": loader.account(result.step),
            "phases": phases.seconds,
            "verdict": verdict,
        },
    )


def add_to_ledger(folder: RunFolder) -> None:
    """Add prediction and outcome of a planned run to $ISOFLOP_HOME/ledger.jsonl, whence later plans can learn."""
    run = read_run(folder.path)
    if not run.plan.get("expected"):
        return
    ledger = RunFolder(home())
    with disk_errors(f"the ledger {home()}"):
        ledger.path.mkdir(parents=True, exist_ok=True)
        ledger.append(
            "ledger",
            {
                "run": str(folder.path.resolve()),
                "time": time.time(),
                "fingerprint": run.data.get("fingerprint"),
                "lzma_bits_per_byte": run.plan.get("lzma_bits_per_byte"),
                "unique_tokens": run.plan.get("unique_tokens"),
                "parameters": run.plan["parameters"],
                "tokens": run.result["tokens"],
                "flops": run.result["flops"],
                "seed": run.config["seed"],
                "expected": run.plan["expected"],
                "reached_bits_per_byte": run.result["heldout"]["bits_per_byte"],
                "verdict": run.result["verdict"],
            },
        )


def extend(folder: RunFolder, config: RunConfig, more: Budget) -> None:
    """Set a run back to before its decay, with a later end: the run that the larger budget would have made.

    The decayed end stays beside the run, in `ended/`.

    Raises:
        UserError: if the schedule has no stage to go back to, or that checkpoint is gone.
    """
    if not more.more:
        raise UserError(f"budget {str(more)!r} with --resume is on top of what the run had: write +{more}")
    decisions = read_lines(folder.log("decisions"))
    timetable = Timetable(config.schedule, config.steps, tuple(Decision.from_dict(line) for line in decisions))
    back_to = timetable.decay_step
    steps = checkpoint.steps(folder.checkpoints)
    if not steps:
        raise UserError(f"{folder.path} has no checkpoint to go on from; go on without --budget first")
    if back_to is None:
        raise UserError(
            f"{folder.path} cannot be extended: its schedule {config.schedule.name!r} has no stage at the full rate"
        )
    at = back_to if steps[-1] >= back_to else steps[-1]
    if at not in steps:
        raise UserError(f"{folder.path} has no checkpoint of step {at}, from before its decay; it cannot be extended")
    seconds, total = extended_length(folder, config, timetable, decisions, more)
    with disk_errors(f"the run folder {folder.path}"), folder.locked():
        ended = folder.path / "ended" / f"step-{steps[-1]:08d}"
        ended.mkdir(parents=True, exist_ok=True)
        for step in steps:
            if step > at:
                source = checkpoint.at_step(folder.checkpoints, step)
                if step == steps[-1]:
                    source.replace(ended / source.name)
                else:
                    shutil.rmtree(source)
        for path in (folder.result, folder.report):
            if path.exists():
                path.replace(ended / path.name)
        write_text(ended / "metrics.jsonl", folder.log("metrics").read_text(encoding="utf-8"))
        folder.forget_after(at)
        reason = f"extended by {more}: goes on from step {at}, before the decay"
        decision = Decision(
            at_step=at, steps=max(at + 1, total), progress=min(at / max(at + 1, total), 0.999), reason=reason
        )
        folder.append("decisions", {**decision.to_dict(), "seconds": seconds}, durable=True)
        folder.event("extended", step=at, budget=str(more), steps=total)


def extended_length(
    folder: RunFolder, config: RunConfig, timetable: Timetable, decisions: list[dict[str, Any]], more: Budget
) -> tuple[float, int]:
    """The seconds (0: not held to any) and steps of a run with `more` on top."""
    training = read_run(folder.path).training
    per_step = training[-1]["seconds"] / training[-1]["step"] if training else 0.0
    held_to = next((line["seconds"] for line in reversed(decisions) if line.get("seconds")), config.seconds)
    match more.kind:
        case "seconds":
            if not per_step:
                raise UserError(f"{folder.path} has no timed step yet; extend it by tokens or steps instead")
            spent = held_to or per_step * timetable.total_steps
            return spent + more.amount, round((spent + more.amount) / per_step)
        case "tokens":
            added = more.amount / config.tokens_per_step
        case "flops":
            last = training[-1]
            added = more.amount / (last["flops"] / last["step"])
        case _:
            added = more.amount
    return 0.0, timetable.total_steps + max(1, round(added))


def evaluate(run: Path | str, sources: Sequence[str] = (), text_column: str = "text") -> HeldOut:
    """Held-out loss of a run on its own held-out text, or on every document of `sources`.

    Raises:
        UserError: if there is no run or no text.
    """
    model, tokenizer, snapshot = checkpoint.load_model(Path(run))
    run_as = from_dict(RunConfig, snapshot.config)
    runtime = make_runtime("auto", run_as.runtime.dtype, run_as.runtime.threads)
    model.to(runtime.device)
    if not sources:
        prepared = data_of(RunFolder(run_folder_of(Path(run))), run_as.data, None)
        return measure(model, prepared.heldout(), tokenizer.token_bytes(), tokenizer.eot, runtime)
    config = DataConfig(sources=tuple(sources), text_column=text_column)
    parts = [
        measure(model, tokens, tokenizer.token_bytes(), tokenizer.eot, runtime)
        for tokens in token_chunks(config, tokenizer)
    ]
    if not parts:
        raise UserError(f"there is no text in {' '.join(sources)}")
    return HeldOut(sum(p.nats for p in parts), sum(p.tokens for p in parts), sum(p.bytes for p in parts))


def start_from(base: RunConfig, init: Path | str) -> tuple[RunConfig, int]:
    """`base` with the model and tokenizer of the run `init`, and how many ids that tokenizer has."""
    source = Path(init)
    if not source.exists():
        raise UserError(f"--init {init} does not exist; name a run folder")
    snapshot = checkpoint.read(source)
    model = from_dict(ModelConfig, snapshot.config["model"], "model")
    tokenizer = checkpoint.latest(source / "checkpoints") or source
    data = replace(base.data, tokenizer=str((tokenizer / "tokenizer.json").resolve()))
    vocabulary = Tokenizer.from_json(snapshot.tokenizer).vocab_size
    return replace(base, model=model, data=data, init=str(source.resolve())), vocabulary


def tokenizer_size(data: DataConfig, base: RunConfig | None) -> int:
    """The ids of a tokenizer that is given rather than trained; 0 if the planner may choose."""
    if data.path:
        return open_prepared(Path(data.path), verify_checksums=False).vocab_size
    if data.tokenizer != "bpe":
        return Tokenizer.from_file(data.tokenizer).vocab_size
    return 0 if base is None else data.vocab_size


def token_chunks(config: DataConfig, tokenizer: Tokenizer) -> Iterator[npt.NDArray[np.int64]]:
    """The tokens of every document of the sources, each followed by end-of-text, some CHUNK_TOKENS at a time."""
    held: list[npt.NDArray[np.int64]] = []
    for document in documents(config):
        held.append(np.array([*tokenizer.encode(document), tokenizer.eot], dtype=np.int64))
        if sum(map(len, held)) >= CHUNK_TOKENS:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def new_folder_name(data: DataConfig) -> Path:
    """runs/<first source>-<number>, the first that is free."""
    name = "data" if data.path else parse_sources(data.sources)[0].name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "run"
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def data_of(folder: RunFolder, data: DataConfig, progress: Progress | None) -> Prepared:
    """The prepared data of a run: where it lay when the run began, if it still does, else prepared anew."""
    account = load_json(folder.data) if folder.data.is_file() else {}
    where = Path(str(account.get("folder", "")))
    if account.get("folder") and (where / "manifest.json").is_file():
        prepared = open_prepared(where)
        if prepared.fingerprint == account.get("fingerprint"):
            return prepared
    return prepare(data, progress=progress)


def run_folder_of(path: Path) -> Path:
    """The run that a path belongs to, be it the run's folder or one of its checkpoints."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def load(run: Path | str, device: str = "cpu") -> tuple[GPT, Tokenizer]:
    """The model of a run's last checkpoint, ready to evaluate or sample, and its tokenizer.

    Raises:
        UserError: if there is no run, it has no checkpoint yet, or its files are damaged.
    """
    model, tokenizer, _ = checkpoint.load_model(Path(run), device)
    return model.eval(), tokenizer


def list_runs(path: Path | str = "runs") -> list[dict[str, Any]]:
    """One summary for each run below `path`: what `isoflop runs` shows."""
    rows = []
    for run in find_runs(path):
        last = run.heldout[-1] if run.heldout else {}
        reached = run.result.get("heldout", {}).get("bits_per_byte", last.get("heldout_bits_per_byte"))
        expected = (run.plan.get("expected") or {}).get("bits_per_byte")
        rows.append(
            {
                "run": str(run.folder.path),
                "status": run.status,
                "parameters": run.plan.get("parameters"),
                "steps": run.training[-1]["step"] if run.training else 0,
                "tokens": run.training[-1]["tokens"] if run.training else 0,
                "seconds": run.training[-1]["seconds"] if run.training else 0.0,
                "bits_per_byte": reached,
                "expected": expected,
            }
        )
    return rows


def seconds_line(phases: Phases) -> str:
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases.seconds.items())
    return f"outside the budget: {spent}"


@torch.no_grad()
def sample(
    run: Path | str,
    prompt: str,
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 0.95,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Continue `prompt` with a run's last checkpoint; see generate/engine.py for the arguments."""
    model, tokenizer = load(run)
    return generate(
        model, tokenizer, prompt, tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, on_text=on_text
    )


def with_sources(config: RunConfig, sources: Sequence[str], heldout: Sequence[str], strict: bool) -> RunConfig:
    """A configuration on the text that is named, where any is; else as it is."""
    data = config.data
    if sources:
        data = replace(data, sources=tuple(sources), path="")
    data = replace(data, heldout=tuple(heldout) or data.heldout, strict=strict or data.strict)
    return replace(config, data=data)
