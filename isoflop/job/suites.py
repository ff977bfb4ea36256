"""Scores runs on suites and by strided perplexity: `isoflop eval RUN --suite` and `--stride`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from isoflop import checkpoint
from isoflop.config import from_dict
from isoflop.data.config import DataConfig
from isoflop.data.prepare import documents
from isoflop.data.tally import Tally
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.evaluate.compare import Compared, compare
from isoflop.evaluate.contamination import Overlap, documents_of, find_overlap
from isoflop.evaluate.harness import adapter
from isoflop.evaluate.perplexity import Strided, strided, texts_of
from isoflop.evaluate.scores import Asked, Scores, ask
from isoflop.evaluate.scores import score as score_suite
from isoflop.files import disk_errors, write_json
from isoflop.job.reopen import Moved, open_run_data, run_folder_of
from isoflop.job.runs import EVALUATE, config_for_sources, refuse_mixed, refuse_runs, was_imported
from isoflop.model.build import MODELS
from isoflop.model.gpt import GPT
from isoflop.records import RunFolder, SuiteScore, read_object, read_run
from isoflop.runtime import Runtime, make_runtime
from isoflop.trainer import RunConfig
from isoflop.values import counted, instead


@dataclass(frozen=True)
class Scored:
    """The scores of runs on suites.

    Attributes:
        runs: the scores of each run on the suites, in their order; by the run's path as given.
        compared: comparisons of all pairs of runs on all suites.
        notes: lines for the user.
    """

    runs: dict[str, list[Scores]]
    compared: list[Compared] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": {run: [suite.to_dict() for suite in scores] for run, scores in self.runs.items()},
            "compared": [comparison.to_dict() for comparison in self.compared],
            "notes": self.notes,
        }


def score(
    runs: Sequence[Path | str],
    suites: Sequence[str],
    *,
    items: Path | str = "",
    limit: int = 0,
    contamination: bool = False,
    moved: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
) -> Scored:
    """Score the last checkpoints of runs on suites. The score on a whole suite is stored in the run's folder, as
    suites/NAME.json; that on a part of one (`limit`, or fewer items than the suite's file says) is not.

    Args:
        suites: names of suites that come with isoflop, or paths of suite files.
        items: the folder or tar archive with the items; "": next to the suite's own file.
        limit: items per subset, evenly spaced; 0: all.
        contamination: look for the items in each run's training text, and also score without those found.
        moved: for the contamination of one run, the new places of its text, if that was moved.
        say: called with one line of progress at a time.

    Raises:
        UserError: for a run that cannot be read or is not a GPT, for a training text that is not there, for a malformed
            suite or item, and for a limit that is no number of items, before any model is scored.
    """
    check_count(limit, "--limit")
    if limit < 0:
        raise UserError(f"--limit {limit} is negative; 0 is all items")
    if not runs or not suites:
        raise UserError("name at least one run and one suite, as in: isoflop eval RUN --suite blimp --items FOLDER")
    suite_items = [ask(name, Path(items) if items else None, limit) for name in suites]
    names = [items_of_suite.suite.name for items_of_suite in suite_items]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--suite names {repeated} twice")
    check_runs(runs)
    if moved and (len(runs) > 1 or not contamination):
        raise UserError("--moved is the new place of one run's text, for --contamination; leave it out")
    texts = {str(run): training_text(Path(run), moved) for run in runs} if contamination else {}

    by_run: dict[str, list[Scores]] = {}
    notes = [] if limit else [note for asked in suite_items if (note := part_note(asked))]
    for run in runs:
        model, tokenizer, snapshot, runtime = load_for_scoring(Path(run))
        overlaps: list[Overlap] = []
        if contamination:
            if init := from_dict(RunConfig, snapshot.config).init:
                notes.append(f"note: {run} began with the weights of {init}, whose training text was not searched")
            overlaps = overlaps_of(suite_items, texts[str(run)], tokenizer)

        by_run[str(run)] = []
        for number, items_of_suite in enumerate(suite_items):
            if say is not None:
                say(f"{run}: {items_of_suite.suite.name}, {counted(len(items_of_suite.items), 'item')}")
            scores = score_suite(model, tokenizer, items_of_suite, runtime)
            if contamination:
                scores = replace(scores, overlaps=overlaps[number].overlaps, short=overlaps[number].short)
            by_run[str(run)].append(scores)
            if limit or not items_of_suite.is_whole:
                continue
            if note := store_score(Path(run), snapshot, scores):  # at once: the next may be interrupted
                notes.append(note)
    return Scored(by_run, compare(by_run) if len(by_run) > 1 else [], notes)


def check_count(value: Any, option: str) -> None:
    """Raise UserError for a number of something that is no whole number: from Python it can be anything."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{option} {value!r} is not a whole number{instead(int, value)}")


def part_note(asked: Asked) -> str:
    """A note if the items that were found are not the whole suite; otherwise ""."""
    if asked.is_whole:
        return ""
    suite = asked.suite
    return (
        f"note: {suite.name} has {counted(suite.items, 'item')}, not the {len(asked.items):,} found; this score is not "
        f"stored as that on {suite.name}"
    )


def check_runs(runs: Sequence[Path | str]) -> None:
    """Find the mistakes in a list of runs that are cheap to find, before hours are spent on the first.

    Raises:
        UserError: for a run that is named twice, has no checkpoint or is not a GPT.
    """
    for number, run in enumerate(runs):
        place = Path(run).resolve()
        if other := next((other for other in runs[:number] if Path(other).resolve() == place), None):
            twice = f"{run} is named twice" if Path(run) == Path(other) else f"{run} and {other} are the same run"
            raise UserError(f"{twice}; a comparison is of different runs")
        refuse_encoder_decoder(run, read_object(checkpoint.find(Path(run), None) / "config.json").get("task"))


def refuse_encoder_decoder(run: Path | str, task: Any) -> None:
    if task in MODELS and MODELS[task].build is not GPT:
        raise UserError(f"{run} is an encoder-decoder; suites and --stride are for models that continue a text")


def training_text(run: Path, moved: Sequence[str] = ()) -> Any:
    """The prepared text of a run.

    Raises:
        UserError: if it has none, or that is not found.
    """
    if was_imported(run):
        raise UserError(f"{run} was imported and has no training text to look in; leave out --contamination")
    record = read_run(run_folder_of(run))
    command = (f"{EVALUATE[0]} --suite NAME --contamination", EVALUATE[1])
    return open_run_data(record, from_dict(RunConfig, record.config), None, Moved(moved), command)


def load_for_scoring(run: Path) -> tuple[GPT, Tokenizer, checkpoint.Snapshot, Runtime]:
    """The model of a run on this machine's device, in float32: the error of a likelihood in bfloat16 is often larger
    than the difference between two options.

    Raises:
        UserError: if there is no run, or its model is not a GPT.
    """
    model, tokenizer, snapshot = checkpoint.load_model(run)
    refuse_encoder_decoder(run, snapshot.task)
    assert isinstance(model, GPT)
    settings = from_dict(RunConfig, snapshot.config).runtime
    runtime = make_runtime("auto", "float32", settings.threads)
    return model.to(runtime.device), tokenizer, snapshot, runtime


def overlaps_of(suite_items: Sequence[Asked], data: Any, tokenizer: Tokenizer) -> list[Overlap]:
    """The overlap of each suite's items with a prepared training text, which is read once."""

    def training() -> Iterable[str]:
        for source in data.sources:
            yield from documents_of(data.train(source), tokenizer)

    overlap = find_overlap([item for asked in suite_items for item in asked.items], training())
    ends = np.cumsum([len(asked.items) for asked in suite_items])[:-1]
    parts = zip(np.split(overlap.overlaps, ends), np.split(overlap.short, ends), strict=True)
    return [Overlap(overlaps, short, overlap.words) for overlaps, short in parts]


def store_score(run: Path, snapshot: checkpoint.Snapshot, scores: Scores) -> str:
    """Store the score on a whole suite in the run's folder, unless `run` is a checkpoint or no run folder. The
    contamination that was found before stays, if it is of the same score.

    Returns:
        A note if it cannot be written; otherwise "".
    """
    folder = RunFolder(run)
    if not folder.config.is_file() or (run / checkpoint.MANIFEST).is_file():
        return ""
    suite = scores.asked.suite
    record = SuiteScore.read({**scores.to_dict(), "source": suite.source, "licence": suite.licence})
    record = record.updated(step=snapshot.step, digest=scores.asked.digest)
    before = next((one for one in read_run(run).suites if one.suite == suite.name), None)
    if before and record.contamination is None and same_score(before, record):
        record = record.updated(contamination=before.contamination)
    try:
        with disk_errors(f"the run folder {run}"):
            folder.suites.mkdir(exist_ok=True)
            write_json(folder.suites / f"{suite.name}.json", record.to_dict())
    except UserError as error:
        return f"note: the score on {suite.name} is not stored: {error}"
    return ""


def same_score(one: SuiteScore, other: SuiteScore) -> bool:
    """Whether two records are of one checkpoint, the same items and the same scores."""
    return (one.step, one.digest, one.metrics) == (other.step, other.digest, other.metrics)


def lm_eval_model(run: Path | str) -> Any:
    """A run as a model of lm-eval, to evaluate it on lm-eval's tasks: lm_eval.simple_evaluate(model=..., tasks=[...]).

    Raises:
        UserError: if the extra lm-eval is not installed, or for a run that `score` would refuse.
    """
    model, tokenizer, _, runtime = load_for_scoring(Path(run))
    return adapter(model, tokenizer, runtime, str(Path(run).resolve()))


def whole_documents(config: DataConfig) -> Iterator[str]:
    """The documents of sources. A long plain text is read in pieces, which the tally counts as one document; this joins
    them."""
    tally = Tally(strict=config.strict)
    pieces: list[str] = []
    number = 0
    for piece in documents(config, tally):
        if pieces and tally.documents != number:
            yield "".join(pieces)
            pieces = []
        number = tally.documents
        pieces.append(piece)
    yield "".join(pieces)


def perplexity(
    run: Path | str,
    sources: Sequence[str] = (),
    stride: int = 0,
    *,
    text_column: str = "",
    set: Sequence[str] = (),
    moved: Sequence[str] = (),
    heldout: Sequence[str] = (),
) -> Strided:
    """Strided perplexity of a run on each document of `sources`, or on its own held-out text.

    Args:
        stride: tokens by which the window slides; 0: half the model's context.
        text_column, set, moved, heldout: how sources are read, and where the run's own text is, as for `evaluate`.

    Raises:
        UserError: as for `evaluate`, and for a stride that is not below the context.
    """
    check_count(stride, "--stride")
    path = Path(run)
    refuse_mixed(path, sources, {"--moved": moved, "--heldout": heldout}, {"--set": set, "--text-column": text_column})
    refuse_runs(path, sources)
    if not sources and was_imported(path):
        raise UserError(
            f"{run} was imported and has no text of its own; name some: isoflop eval {run} SOURCE --stride N"
        )

    model, tokenizer, snapshot, runtime = load_for_scoring(path)
    config = from_dict(RunConfig, snapshot.config)
    if sources:
        data_config = config_for_sources(config.data, sources, text_column, set)
        texts: Iterable[str] = whole_documents(data_config)
    else:
        data: Any = open_run_data(read_run(run_folder_of(path)), config, None, Moved(moved, heldout), EVALUATE)
        texts = texts_of(data.heldout(), tokenizer)
    return strided(model, tokenizer, texts, stride or max(1, model.config.context // 2), runtime)
