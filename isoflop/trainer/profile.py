"""Profiles a few steps of a run with torch.profiler.

    RUN/profile/trace.json.gz   all operations and Python calls, for ui.perfetto.dev or chrome://tracing
    RUN/profile/profile.json    a summary: a table of operations and a tree of calls, shown in the report

A profiled run has the same bits as one without a profiler.
"""

import contextlib
import gzip
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from isoflop.files import write_json
from isoflop.trainer.hooks import Hook
from isoflop.trainer.state import RunState
from isoflop.trainer.step import STEP_SPAN

WARM_UP = 3  # steps of this process before the first profiled one, which allocate memory and choose kernels
STEPS = 3  # profiled steps
SMALLEST = 0.002  # share of the total time; smaller calls are left out of the tree
CATEGORIES = ("cpu_op", "user_annotation", "python_function", "kernel")  # of a Chrome trace, that are summarized


class Profile(Hook):
    """Profiles STEPS steps after the first WARM_UP ones of this process, or the last ones of a shorter run."""

    def __init__(self, steps: int = STEPS, warm_up: int = WARM_UP) -> None:
        self.steps, self.warm_up = steps, warm_up
        self.profiler: Any = None
        self.first = 0

    def started(self, state: RunState) -> None:
        remaining = state.timetable.total_steps - state.step
        self.first = state.step + max(0, min(self.warm_up, remaining - self.steps))
        if self.first == state.step and remaining > 0:
            self.begin(state)

    def stepped(self, state: RunState) -> None:
        if self.profiler is None and state.step == self.first and not state.done:
            self.begin(state)
        elif self.profiler is not None and (state.step >= self.first + self.steps or state.done):
            self.finish(state)

    def ended(self, state: RunState) -> None:
        if self.profiler is not None:
            self.finish(state)

    def begin(self, state: RunState) -> None:
        activities = [ProfilerActivity.CPU]
        if state.runtime.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=activities, with_stack=True)
        self.profiler.start()

    def finish(self, state: RunState) -> None:
        """Stop the profiler and write its files; an interrupted run writes the steps so far."""
        profiler, self.profiler = self.profiler, None
        state.runtime.synchronize()
        profiler.stop()
        steps = state.step - self.first
        if steps < 1:
            return
        folder = state.folder.profile
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch, contextlib.suppress(FileNotFoundError):
            trace = Path(scratch) / "trace.json.gz"
            profiler.export_chrome_trace(str(trace))
            with gzip.open(trace, "rt", encoding="utf-8", errors="replace") as file:
                events = json.load(file)["traceEvents"]
            trace.replace(folder / "trace.json.gz")
            write_json(
                folder / "profile.json", {"first_step": self.first + 1, "steps": steps, **summarize_trace(events)}
            )


def summarize_trace(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The table and the tree of a Chrome trace, for the steps only (the spans named STEP_SPAN), without hooks and
    checkpoints between them. A trace without a step is summarised as a whole, with a warning.

    Returns:
        `microseconds`: the total. `operations`: rows of `name`, `calls`, `microseconds` in the operation itself without
        its callees, largest first (on a GPU: of its kernels). `tree`: nodes of `name`, `microseconds` with callees,
        `inside`.
    """
    spans = [event for event in events if event.get("ph") == "X" and event.get("cat") in CATEGORIES]
    forest = nest(span for span in spans if span["cat"] != "kernel" and is_shown(span))
    tree = find_all(forest, STEP_SPAN)
    if not tree:
        warnings.warn(f"the profile has no span named {STEP_SPAN!r}: all that was recorded is shown", stacklevel=2)
        tree = forest

    self_time: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    kernels = [node for span in spans if span["cat"] == "kernel" for node in nest([span])]
    add_self_times(kernels or tree, self_time, calls)
    total = sum(node["microseconds"] for node in tree)
    rows = [
        {"name": name, "calls": calls[name], "microseconds": round(self_time[name], 1)}
        for name, _ in self_time.most_common()
    ]
    return {"microseconds": round(total, 1), "operations": rows, "tree": merge(tree, SMALLEST * total)}


def find_all(nodes: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The topmost nodes with this name."""
    matches = []
    for node in nodes:
        matches += [node] if node["name"] == name else find_all(node["inside"], name)
    return matches


def is_shown(span: dict[str, Any]) -> bool:
    """Whether a span is an operation, a module or a function of isoflop, not a function of torch or Python."""
    if span["cat"] != "python_function":
        return True
    name = str(span["name"])
    return name.startswith("nn.Module:") or "isoflop/" in name.replace("\\", "/")


def nest(spans: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans as a forest: a span is a child of the one that encloses it on the same thread."""
    roots: list[dict[str, Any]] = []
    open_spans: dict[Any, list[tuple[float, dict[str, Any]]]] = {}
    for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        start, end = float(span["ts"]), float(span["ts"]) + float(span["dur"])
        node = {"name": display_name(str(span["name"])), "microseconds": float(span["dur"]), "inside": []}
        stack = open_spans.setdefault((span.get("pid"), span.get("tid")), [])
        while stack and stack[-1][0] <= start:
            stack.pop()
        (stack[-1][1]["inside"] if stack else roots).append(node)
        stack.append((end, node))
    return roots


def display_name(name: str) -> str:
    """A span's name for readers: "isoflop/trainer/step.py take_step", "Linear", "aten::mm"."""
    if name.startswith("nn.Module:"):
        return name.removeprefix("nn.Module:").strip().rpartition("_")[0]
    place, colon, function = name.partition("): ")
    if not colon:
        return name.removeprefix("autograd::engine::evaluate_function: ")
    path = place.rpartition("(")[0].replace("\\", "/")
    return f"{path[path.rfind('isoflop/') :]} {function}"


def add_self_times(nodes: list[dict[str, Any]], self_time: Counter[str], calls: Counter[str]) -> None:
    """Sum up each name's calls and its time without its children's."""
    for node in nodes:
        calls[node["name"]] += 1
        self_time[node["name"]] += node["microseconds"] - sum(child["microseconds"] for child in node["inside"])
        add_self_times(node["inside"], self_time, calls)


def merge(nodes: list[dict[str, Any]], least: float) -> list[dict[str, Any]]:
    """Merge siblings of the same name, in the order of their first call; leave out those below `least`."""
    by_name: dict[str, dict[str, Any]] = {}
    for node in nodes:
        merged = by_name.setdefault(node["name"], {"name": node["name"], "microseconds": 0.0, "inside": []})
        merged["microseconds"] += node["microseconds"]
        merged["inside"].extend(node["inside"])
    return [
        {
            "name": merged["name"],
            "microseconds": round(merged["microseconds"], 1),
            "inside": merge(merged["inside"], least),
        }
        for merged in by_name.values()
        if merged["microseconds"] >= least
    ]
