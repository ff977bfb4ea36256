"""The stages of bench/card.py, each run in its own process: `python bench/card_stages.py NAME SPEC`.

SPEC is JSON: device, pack (a folder or ""), scratch (a folder for the stages to share), rows (the file for the
results), limit (seconds). A stage calls `row` for each result as soon as it is measured.
"""

import contextlib
import functools
import json
import os
import pstats
import re
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isoflop.config import override
from isoflop.model.count import flops_per_token
from isoflop.runtime import card_peak, describe_machine, free_memory, make_runtime, peak_memory, seed_everything
from isoflop.trainer.config import BatchConfig, RunConfig
from record import ROOT
from shapes import CARD_SIZES, nanogpt_model
from tables import CARD_MFU, CARD_SPEED
from turns import random_tokens, take_turns_alone


class Stage:
    """The environment of a stage: device, pack, scratch folder, file for rows, time limit."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.device: str = spec["device"]
        self.pack = Path(spec["pack"]) if spec["pack"] else None
        self.scratch = Path(spec["scratch"])
        self.path = Path(spec["rows"])
        self.deadline = time.monotonic() + spec["limit"]

    @property
    def card(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.card else "float32"

    @property
    def left(self) -> float:
        """Seconds until the stage is stopped."""
        return self.deadline - time.monotonic()

    def row(self, what: str, value: Any, unit: str = "", target: str = "", note: str = "") -> None:
        """Write a result at once, so that a later crash does not lose it."""
        line = {"what": what, "value": value, "unit": unit, "target": target, "note": note}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: text for key, text in line.items() if text != ""}) + "\n")
        print(line, flush=True)

    def text(self) -> str:
        """The pack's text; without a pack, the documentation of Python's standard library."""
        return str(self.pack / "text.jsonl.xz") if self.pack else "stdlib"

    @contextlib.contextmanager
    def carrying_on(self, what: str) -> Iterator[None]:
        """A context manager for a part of a stage: its failure is recorded as a result, and the stage continues."""
        try:
            yield
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            self.row(what, f"failed: {type(error).__name__}: {said[-1][:200]}")


def about(stage: Stage) -> None:
    """Versions, and the GPU's two ceilings: a large matrix product in bfloat16, and a copy within its memory."""
    machine = describe_machine(stage.device)
    stage.row("machine", machine.get("gpu", machine["processor"]), note=f"{machine['cores']} cores")
    stage.row("versions", f"python {machine['python']}, torch {machine['torch']}, CUDA {machine.get('cuda')}")
    free = free_memory(stage.device)
    stage.row("free memory", round((free or 0) / 2**30, 1), "GiB")

    n, count = (8192, 2**30) if stage.card else (512, 2**22)
    a, b = (torch.randn(n, n, device=stage.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = fastest(stage, functools.partial(torch.mm, a, b))
    sheet = card_peak(machine.get("gpu", "")) if stage.card else None
    share = f"{2 * n**3 / seconds / sheet:.0%} of the data sheet's {sheet / 1e12:,.0f}" if sheet else ""
    stage.row(f"product {n} x {n} x {n}, bfloat16", round(2 * n**3 / seconds / 1e12, 2), "TFLOP/s", note=share)
    del a, b

    x = torch.empty(count, device=stage.device)
    y = torch.empty_like(x)
    seconds = fastest(stage, lambda: y.copy_(x))
    stage.row("copy, bytes read plus written", round(2 * x.nbytes / seconds / 1e9, 1), "GB/s")


def fastest(stage: Stage, call: Callable[[], object], calls: int = 20) -> float:
    """The shortest time of a call, in seconds, after two calls to warm up."""
    runtime = make_runtime(stage.device)
    took = []
    for _ in range(calls + 2):
        runtime.synchronize()
        started = time.perf_counter()
        call()
        runtime.synchronize()
        took.append(time.perf_counter() - started)
    return min(took[2:])


def checks(stage: Stage) -> None:
    """Run the tests with the marker `gpu`."""
    found = stage.scratch / "checks.xml"
    command = [sys.executable, "-m", "pytest", "tests/card", "-m", "gpu", "-p", "no:cacheprovider", "-q"]
    command += [f"--junitxml={found}", "-x" if not stage.card else "-q"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "ISOFLOP_CARD": stage.device})
    cases = list(xml.etree.ElementTree.parse(found).iter("testcase")) if found.exists() else []
    bad = [(case.get("name", "?"), case.find("failure")) for case in cases if case.find("failure") is not None]
    bad += [(case.get("name", "?"), case.find("error")) for case in cases if case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    stage.row("tests passed", len(cases) - len(bad) - skipped, note=f"{skipped} skipped, {len(bad)} failed")
    for name, why in bad:
        stage.row(name, "failed: " + ((why.get("message") if why is not None else "") or "").strip()[:300])
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with exit code {done.returncode}")


def main_job(stage: Stage) -> None:
    """Run `isoflop train TEXT --budget 60s`, and record what its run folder says."""
    out, budget = stage.scratch / "main", "60s" if stage.card and stage.left > 100 else "25s" if stage.card else "20s"
    started = time.monotonic()
    words = ["train", stage.text(), "--budget", budget, "--out", str(out), "--profile"]
    with subprocess.Popen([sys.executable, "-m", "isoflop", *words], cwd=stage.scratch) as process:
        while process.poll() is None and not (out / "config.json").exists():
            time.sleep(0.2)
        if (out / "config.json").exists():  # the plan is a result, whatever comes of the run
            plan, config = (json.loads((out / f"{name}.json").read_text()) for name in ("plan", "config"))
            stage.row("from the command to the first step", round(time.monotonic() - started, 1), "s")
            model, batch = config["model"], config["batch"]["sequences"]
            shape = f"{model['layers']} x {model['d_model']}, context {model['context']}, {model['vocab_size']:,} ids"
            passes = f"passes of {config['batch']['micro_sequences'] or batch}, {plan['steps']:,} steps"
            stage.row("budget and plan", f"{budget}: {shape}, batch {batch}", note=passes)
            stage.row("compiled, dtype", f"{config['runtime']['compile']}, {config['runtime']['dtype']}")
    if process.returncode:
        raise RuntimeError(f"isoflop train ended with exit code {process.returncode}")
    seconds = time.monotonic() - started

    result, environment = (json.loads((out / f"{name}.json").read_text()) for name in ("result", "environment"))
    expected = plan["expected"]
    reached = result["heldout"]["bits_per_byte"]
    stage.row(
        "reached",
        round(reached, 3),
        "bits per byte",
        note=f"expected {expected['bits_per_byte']:.3f}, {result['verdict']}",
    )
    chosen = next(row for row in plan["candidates"] if row["chosen"])
    rate = result["tokens_per_second"]
    stage.row("tokens per second in the run", round(rate), note=f"calibrated {chosen['tokens_per_second']:,.0f}")
    stage.row("MFU", result["mfu"] and round(result["mfu"], 4), note=f"{result['step']:,} steps")
    stage.row("phases, seconds", ", ".join(f"{name} {value:.1f}" for name, value in result["phases"].items()))
    stage.row("from the command to its end", round(seconds, 1), "s", note=f"{result['seconds']:.1f} s of training")
    stage.row("report", (out / "report.html").stat().st_size // 1024, "KiB")
    stage.row("peak measured", round(max(environment.get("peak", {"": 0}).values()) / 1e12, 1), "TFLOP/s")
    for op in json.loads((out / "profile" / "profile.json").read_text())["operations"][:6]:
        stage.row(
            f"kernel {op['name'][:60]}",
            round(op["microseconds"] / 1e3, 2),
            "ms",
            note=f"{op['calls']} calls in 3 steps",
        )


def speed(stage: Stage) -> None:
    """GPT-2 124M with nanoGPT's settings: ours compiled, nanoGPT's train.py, ours eager, in turns, as time permits."""
    name = "124M" if stage.card else "tiny"
    specs = {"isoflop": ours(stage, name)}
    if stage.pack and (stage.pack / "nanogpt").is_dir():
        keys = ("size", "tokens", "device", "compile")
        specs["nanogpt"] = {"trainer": "nanogpt", "folder": str(stage.pack / "nanogpt")}
        specs["nanogpt"] |= {key: specs["isoflop"][key] for key in keys} | {"micro": 12 if stage.card else 2}
    specs["isoflop eager"] = {**specs["isoflop"], "compile": False}
    specs["isoflop muon"] = {**specs["isoflop"], "optimizer": "muon"}
    rates: dict[str, list[float]] = {}
    for turn in range(2):
        for who, spec in specs.items():
            if turn and (stage.left < 45 or who not in rates):
                continue
            found = timed(stage, who, name, spec, steps=4 if stage.card else 2, note=f"turn {turn + 1}")
            if found:
                rates.setdefault(who, []).append(found)
    if {"isoflop", "nanogpt"} <= rates.keys():
        pairs = zip(rates["isoflop"], rates["nanogpt"], strict=False)
        times = [mine / theirs for mine, theirs in pairs]
        stage.row(
            "isoflop, times nanoGPT",
            round(statistics.median(times), 2),
            target=str(CARD_SPEED),
            note=f"{len(times)} turns",
        )


def ours(stage: Stage, name: str, **changed: Any) -> dict[str, Any]:
    """The specification of our trainer for bench/contender.py."""
    micro = {"124M": 48, "1.5B": 8, "tiny": 2}[name]
    spec = {"trainer": "isoflop", "size": name, "device": stage.device, "dtype": stage.dtype, "compile": stage.card}
    spec["tokens"] = str(random_tokens(stage.scratch, CARD_SIZES[name].vocabulary))
    return {**spec, "preflight": False, "micro": micro, **changed}


def timed(
    stage: Stage, who: str, name: str, spec: dict[str, Any], steps: int, note: str = "", warm_up: int = 2
) -> float | None:
    """Tokens per second of one contender, as a row with its MFU and memory; None if it did not run."""
    size = CARD_SIZES[name]
    started = time.monotonic()
    done, missing = take_turns_alone({who: spec}, steps, 1, stage.scratch, warm_up=warm_up)
    if who not in done:
        stage.row(f"{name} {who}", "failed: " + last_error(missing[who]))
        return None
    tokens = spec.get("sequences", size.batch) * size.context / done[who].median
    sheet = card_peak(torch.cuda.get_device_name()) if stage.card else None
    said = [f"{done[who].peak_bytes / 2**30:.1f} GiB", f"{time.monotonic() - started:.0f} s in all", note]
    if sheet:
        flops = flops_per_token(nanogpt_model(size), convention="palm")
        said.insert(0, f"MFU {flops * tokens / sheet:.1%}")
    target = f"MFU {CARD_MFU[name]:.0%}" if who == "isoflop" and name in CARD_MFU else ""
    stage.row(f"{name} {who}", round(tokens), "tokens/s", target, ", ".join(filter(None, said)))
    return tokens


def last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ([line for line in lines if "Error" in line] or lines or ["?"])[-1][:250]


SMALL = (
    *("model.layers=6", "model.d_model=192", "model.heads=3", "model.context=256", "model.vocab_size=8192"),
    *("batch.sequences=24", "every.evaluate=0", "every.sample=0", "every.checkpoint=0"),
)


def loop(stage: Stage) -> None:
    """Compare the step time that calibration measures with that of the training loop, and profile the host in the loop,
    for the shape of the first GPU run's plan (6 x 192, 6,144 tokens per step, Muon)."""
    from contender import Tokens
    from isoflop.trainer.loop import train
    from isoflop.trainer.throughput import time_steps

    words = [*SMALL, f"runtime.device={stage.device}", f"runtime.dtype={stage.dtype}"]
    if not stage.card:
        words += ["model.d_model=32", "model.heads=2", "model.context=64", "batch.sequences=4"]
    config = override(RunConfig(), [*words, f"steps={120 if stage.card else 30}"])
    stage.row("launch of one operation", round(1e6 * launch_seconds(stage), 2), "us")
    calibrated = time_steps(config, 2.0 if stage.card else 0.3)
    stage.row("calibration", round(1e3 * calibrated.seconds_per_step, 2), "ms per step")

    tokens = Tokens(random_tokens(stage.scratch, config.model.vocab_size), config.model.vocab_size)
    for name, fields in (
        ("loop", []),
        ("loop, AdamW", ["optim.name=adamw"]),
        ("loop, spike=stop", ["guard.spike=stop"]),
    ):
        changed = override(config, fields)
        result = train(changed, stage.scratch / f"loop-{name.replace(' ', '-')}", prepared=tokens)
        stage.row(
            name, round(1e3 * (result.seconds - result.aside_seconds) / result.step, 2), "ms per step", note="whole run"
        )

    stage.row("launch of one operation, after these", round(1e6 * launch_seconds(stage), 2), "us")
    profile_command_line(stage, words)


def launch_seconds(stage: Stage, calls: int = 2000) -> float:
    """Host seconds to launch an operation on a few numbers, which bounds the speed of small models."""
    x = torch.zeros(8, device=stage.device)
    runtime = make_runtime(stage.device)
    for _ in range(calls // 10):
        x.add_(1)
    runtime.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        x.add_(1)
    seconds = (time.perf_counter() - started) / calls
    runtime.synchronize()
    return seconds


def profile_command_line(stage: Stage, words: Sequence[str]) -> None:
    """Run the same shape by `isoflop train` under cProfile: milliseconds per step, and where the host's time goes."""
    out, found = stage.scratch / "profiled", stage.scratch / "profiled.prof"
    steps = 150 if stage.card else 10
    command = [sys.executable, "-m", "cProfile", "-o", str(found), "-m", "isoflop", "train", stage.text()]
    command += ["--budget", f"{steps}steps", "--out", str(out)]
    command += [word for each in words if "vocab" not in each for word in ("--set", each)]
    subprocess.run(command, cwd=stage.scratch, check=True)
    result = json.loads((out / "result.json").read_text())
    stepping = result["seconds"] - result["aside_seconds"]
    stage.row("isoflop train, profiled", round(1e3 * stepping / result["step"], 2), "ms per step")
    stats: Any = pstats.Stats(str(found))
    rows = sorted(stats.stats.items(), key=lambda item: -item[1][2])
    for (file, line, function), (_, calls, own, _, _) in rows[:12]:
        place = f"{'/'.join(Path(file).parts[-2:])}:{line} {function}" if line else function
        stage.row(f"host: {place[-70:]}", round(own, 2), "s in all", note=f"{calls} calls")


def fits(stage: Stage) -> None:
    """Compare, at 124M, the sequences per pass that the planner finds to fit with what runs, and measured memory with
    the estimate of preflight."""
    from isoflop.trainer.throughput import fit_micro_batches

    name = "124M" if stage.card else "tiny"
    size = CARD_SIZES[name]
    config = RunConfig(model=nanogpt_model(size), batch=BatchConfig(sequences=size.batch))
    config = override(config, [f"runtime.device={stage.device}", f"runtime.dtype={stage.dtype}", "optim.name=adamw"])
    started = time.monotonic()
    found = fit_micro_batches(config).batch.micro
    stage.row("passes that the planner takes", found, "sequences", note=f"{time.monotonic() - started:.1f} s to find")
    if stage.card:
        torch.cuda.empty_cache()
    larger = next((n for n in range(found + 1, size.batch + 1) if size.batch % n == 0), found)
    for micro, steps in ((found, 2), (larger, 1)):
        if stage.left > 25:
            timed(stage, f"passes of {micro}", name, ours(stage, name, micro=micro, compile=False), steps, warm_up=1)


def residual(stage: Stage) -> None:
    """The residual stream in bfloat16 next to float32: speed and memory at 124M, loss of a small model on the text."""
    name = "124M" if stage.card else "tiny"
    for who in ("float32", "bfloat16"):
        timed(
            stage,
            f"residual stream {who}",
            name,
            ours(stage, name, residual=who, dtype="bfloat16"),
            3 if stage.card else 1,
        )
    from contender import narrow_residual_stream
    from isoflop.trainer.loop import train
    from isoflop.trainer.task import make_task

    words = ["model.layers=6", "model.d_model=384", "model.heads=6", "batch.sequences=64", "every.sample=0"]
    words += [
        f"data.sources={json.dumps([stage.text()])}",
        "data.vocab_size=4096",
        "every.checkpoint=0",
        "every.evaluate=0",
    ]
    words += [f"runtime.device={stage.device}", "runtime.dtype=bfloat16", "steps=200", "optim.lr=0.003"]
    if not stage.card:
        words += ["steps=3", "model.layers=1", "model.d_model=32", "model.heads=2", "batch.sequences=2"]
    config = override(RunConfig(), words)
    prepared = make_task(config).prepare_data(config.data)
    config = replace(config, model=replace(config.model, vocab_size=prepared.vocab_size))
    for who, hooks in (("float32", ()), ("bfloat16", (narrow_residual_stream(),))):
        if stage.left > 12:
            result = train(config, stage.scratch / f"residual-{who}", hooks=hooks, prepared=prepared)
            stage.row(f"6 x 384 on the text, {who}", round(result.loss, 4), "nats", note="training loss, last tenth")


def fsdp(stage: Stage) -> None:
    """FSDP2 in a group of one process: NCCL starts, units are gathered, gradients are reduced, and the losses are those
    of the unsharded model. (A run refuses FSDP in one process, where nothing is sharded.)"""
    import torch.distributed as dist  # noqa: TID251 - a group of one process, which isoflop itself never uses

    from isoflop.model.build import build_model
    from isoflop.optim.build import build
    from isoflop.parallel.config import ParallelConfig
    from isoflop.parallel.mesh import Group
    from isoflop.parallel.shard import Layout, Sharded
    from isoflop.trainer.step import take_step
    from isoflop.trainer.task import make_task

    class Divided(ParallelConfig):
        def resolve(self, size: int, hosts: int = 1) -> tuple[str, int]:
            return "fsdp", 1

    backend = "cpu:gloo,cuda:nccl" if stage.card else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    name = "124M" if stage.card else "tiny"
    size = CARD_SIZES[name]
    config = RunConfig(model=nanogpt_model(size), batch=BatchConfig(sequences=8))
    runtime = make_runtime(stage.device, stage.dtype)
    task = make_task(config)
    found: dict[str, list[float]] = {}
    for who in ("whole", "fsdp", *(["fsdp, gathered in bfloat16"] if stage.card else [])):
        seed_everything(0)
        with torch.device("meta" if who != "whole" else stage.device):
            model = build_model(config.task, config.model)
        if who == "whole":
            layout: Any = Layout(model, task.loss)
        else:
            gather = "bfloat16" if "bfloat16" in who else "float32"
            layout = Sharded(model, task.loss, Group(), Divided(gather=gather), stage.device, None)
        optimizers = build(model, override(config, ["optim.name=adamw"]).optim, runtime.dtype, layout.matrices)
        generator = torch.Generator().manual_seed(1)
        losses, started = [], 0.0
        for number in range(8):
            tokens = torch.randint(size.vocabulary, (8, size.context + 1), generator=generator).to(stage.device)
            if number == 3:
                runtime.synchronize()
                started = time.perf_counter()
            loss, _ = take_step(
                model,
                optimizers,
                task,
                (tokens[:, :-1], tokens[:, 1:]),
                micro=8,
                runtime=runtime,
                clip=1.0,
                scale=0.01,  # a rate so small that differences are rounding and not another course of training
                layout=layout,
            )
            losses.append(float(loss))
        seconds = (time.perf_counter() - started) / 5
        found[who] = losses
        apart = max(abs(a - b) for a, b in zip(losses, found["whole"], strict=True))
        rate = 8 * size.context / seconds
        said = f"loss {losses[0]:.4f} to {losses[-1]:.4f}, at most {apart:.2g} from the whole model's"
        stage.row(f"{name} {who}, eager, 8 sequences", round(rate), "tokens/s", note=said)
        del model, optimizers, layout
    dist.destroy_process_group()


def decode(stage: Stage) -> None:
    """Compare greedy decoding in bfloat16 with transformers' `generate`: GPT-2 124M's shape, random weights."""
    from decode import bytes_a_step
    from decode import ours as our_writer
    from decode import theirs as their_writer

    tokens, batches = (32, (1, 64)) if stage.card else (2, (1,))
    dtype = torch.bfloat16
    writers = {"isoflop": our_writer(dtype, stage.device), "transformers": their_writer(dtype, stage.device)}
    runtime = make_runtime(stage.device)
    for batch in batches:
        prompts = torch.randint(50_257, (batch, 64), device=stage.device)
        rates = {}
        for who, write in writers.items():
            with stage.carrying_on(f"batch {batch}, {who}"):
                write(prompts, 2)
                runtime.synchronize()
                started = time.perf_counter()
                write(prompts, tokens)
                runtime.synchronize()
                rates[who] = batch * tokens / (time.perf_counter() - started)
                moved = bytes_a_step(batch, 64 + tokens / 2, dtype) * rates[who] / batch
                stage.row(f"batch {batch}, {who}", round(rates[who], 1), "tokens/s", note=f"{moved / 1e9:,.0f} GB/s")
        if len(rates) == 2:
            stage.row(f"batch {batch}, times transformers", round(rates["isoflop"] / rates["transformers"], 2))


def largest(stage: Stage) -> None:
    """Train GPT-2 1.5B for a few steps of 48 sequences, in passes of 8."""
    name = "1.5B" if stage.card else "tiny"
    sequences = 48 if stage.card else 4
    timed(
        stage, "isoflop", name, ours(stage, name, sequences=sequences), steps=4, warm_up=2, note="48 sequences per step"
    )


def race(stage: Stage) -> None:
    """Seconds to the held-out loss that nanoGPT's own GPU recipe reaches in the time that is left."""
    if stage.pack is None or not (stage.pack / "nanogpt").is_dir():
        raise RuntimeError("the race needs a pack with nanoGPT's folder")
    seconds = max(5, int((stage.left - 60) / 3)) if stage.card else 5
    command = [sys.executable, str(ROOT / "bench" / "race.py"), stage.text(), "--nanogpt", str(stage.pack / "nanogpt")]
    shares = ("0.25", "0.5", "1") if stage.card else ("4",)  # a CPU needs some seconds for a step or two
    command += ["--budget", f"{seconds}s", "--text-mb", "40", "--shares", *shares]
    done = subprocess.run([*command, "--device", stage.device], cwd=stage.scratch, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        found = re.match(r"(nanoGPT|isoflop): ([\d.]+).* in ([\d.]+) s(.*)", line)
        if found:
            stage.row(f"{found[1]}, {found[3]} s", float(found[2]), "bits per byte", note=found[4].strip(" ()"))
        elif line.startswith("isoflop "):
            stage.row("race", line)
    if done.returncode:
        raise RuntimeError(f"race.py ended with exit code {done.returncode}")


STAGES: dict[str, Callable[[Stage], None]] = {
    "about": about,
    "checks": checks,
    "main": main_job,
    "124M": speed,
    "loop": loop,
    "fits": fits,
    "residual": residual,
    "fsdp": fsdp,
    "decode": decode,
    "1.5B": largest,
    "race": race,
}


if __name__ == "__main__":
    stage = Stage(json.loads(sys.argv[2]))
    STAGES[sys.argv[1]](stage)
    stage.row("peak memory of the stage's own process", round(peak_memory(stage.device) / 2**30, 2), "GiB")
