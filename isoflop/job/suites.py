"""Suites put to runs, and strided perplexity: what `isoflop eval RUN --suite` and `--stride` come to."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isoflop import checkpoint
from isoflop.config import from_dict
from isoflop.data.config import DataConfig
from isoflop.data.prepare import documents
from isoflop.data.tally import Tally
from isoflop.data.tokenizer import Tokenizer
from isoflop.errors import UserError
from isoflop.evaluate.compare import Compared, compare
from isoflop.evaluate.contamination import documents_of, find_overlap
from isoflop.evaluate.harness import adapter
from isoflop.evaluate.perplexity import Strided, strided, texts_of
from isoflop.evaluate.scores import Scores, ask
from isoflop.evaluate.scores import score as score_suite
from isoflop.files import disk_errors, write_json
from isoflop.job.reopen import data_of, run_folder_of
from isoflop.job.runs import reading_of, was_imported
from isoflop.model.gpt import GPT
from isoflop.records import RunFolder, SuiteScore, read_run
from isoflop.runtime import Runtime, make_runtime
from isoflop.trainer import RunConfig


@dataclass(frozen=True)
class Scored:
    """What runs came to on suites.

    Attributes:
        runs: for each run, by its path as it was given, its scores on the suites in their order.
        compared: every two runs on every suite.
        notes: lines that a person should see.
    """

    runs: dict[str, list[Scores]]
    compared: list[Compared] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": {run: [scores.to_dict() for scores in found] for run, found in self.runs.items()},
            "compared": [one.to_dict() for one in self.compared],
            "notes": self.notes,
        }


def score(
    runs: Sequence[Path | str],
    suites: Sequence[str],
    *,
    items: Path | str = "",
    limit: int = 0,
    contamination: bool = False,
    say: Callable[[str], None] | None = None,
) -> Scored:
    """Put suites to the last checkpoints of runs. What a run came to on a whole suite is kept in its folder, as
    suites/NAME.json.

    Args:
        suites: names of those that come with isoflop, or paths of suite files.
        items: the folder or tar archive that holds the items; "": those of a suite of one's own lie next to its file.
        limit: only so many items of each subset, evenly spaced; 0: all.
        contamination: look for the items in each run's training text, and score without those found too.
        say: is told how far it is, a line at a time.

    Raises:
        UserError: for a run that cannot be read or is no GPT, and for a malformed suite or item, before any model is
            read.
    """
    if limit < 0:
        raise UserError(f"--limit {limit} is negative; 0 is all items")
    if not runs or not suites:
        raise UserError("name at least one run and one suite, as in: isoflop eval RUN --suite blimp --items FOLDER")
    asked = [ask(name, Path(items) if items else None, limit) for name in suites]
    names = [one.suite.name for one in asked]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"--suite names {repeated} twice")
    if contamination:
        for run in runs:
            if was_imported(Path(run)):
                raise UserError(f"{run} was imported and has no training text to look in; leave out --contamination")

    found: dict[str, list[Scores]] = {}
    notes: list[str] = []
    for run in runs:
        model, tokenizer, snapshot, runtime = scored_model(Path(run))
        scores: list[Scores] = []
        for one in asked:
            if say is not None:
                say(f"{run}: {one.suite.name}, {len(one.items):,} items")
            scores.append(score_suite(model, tokenizer, one, runtime))
        if contamination:
            scores = with_overlap(scores, Path(run), tokenizer)
        if not limit:
            notes += [note for one in scores if (note := keep(Path(run), snapshot, one))]
        found[str(run)] = scores
    return Scored(found, compare(found) if len(found) > 1 else [], notes)


def scored_model(run: Path) -> tuple[GPT, Tokenizer, checkpoint.Snapshot, Runtime]:
    """The model of a run on this machine's device, in float32: in bfloat16 a likelihood is off by more than often lies
    between two options.

    Raises:
        UserError: if there is no run, or its model answers inputs and does not continue texts.
    """
    model, tokenizer, snapshot = checkpoint.load_model(run)
    if not isinstance(model, GPT):
        raise UserError(f"{run} is an encoder-decoder; suites and --stride are for models that continue a text")
    run_as = from_dict(RunConfig, snapshot.config).runtime
    runtime = make_runtime("auto", "float32", run_as.threads)
    return model.to(runtime.device), tokenizer, snapshot, runtime


def with_overlap(scores: Sequence[Scores], run: Path, tokenizer: Tokenizer) -> list[Scores]:
    """Scores with what of each suite's items stands in the training text of a run."""
    record = read_run(run_folder_of(run))
    data: Any = data_of(record, from_dict(RunConfig, record.config))

    def training() -> Iterable[str]:
        for source in data.sources:
            yield from documents_of(data.train(source), tokenizer)

    every = [item for one in scores for item in one.asked.items]
    overlap = find_overlap(every, training())
    marked, first = [], 0
    for one in scores:
        part = slice(first, first + len(one.asked.items))
        marked.append(replace(one, overlaps=overlap.overlaps[part], short=overlap.short[part]))
        first = part.stop
    return marked


def keep(run: Path, snapshot: checkpoint.Snapshot, scores: Scores) -> str:
    """Keep the scores on a whole suite in the run's folder. Returns a note if that cannot be done; a folder that is not
    a run's, or whose last checkpoint was not the one scored, keeps nothing."""
    folder = RunFolder(run)
    if not folder.config.is_file() or (run / checkpoint.MANIFEST).is_file():
        return ""
    suite = scores.asked.suite
    record = SuiteScore.read({**scores.to_dict(), "source": suite.source, "licence": suite.licence})
    try:
        with disk_errors(f"the run folder {run}"):
            folder.suites.mkdir(exist_ok=True)
            write_json(folder.suites / f"{suite.name}.json", record.updated(step=snapshot.step).to_dict())
    except UserError as error:
        return f"note: the score on {suite.name} is not kept: {error}"
    return ""


def lm_eval_model(run: Path | str) -> Any:
    """A run as lm-eval's model, so that its tasks can be put to it: lm_eval.simple_evaluate(model=..., tasks=[...]).

    Raises:
        UserError: if the extra lm-eval is not installed, or for a run that `score` would refuse.
    """
    model, tokenizer, _, runtime = scored_model(Path(run))
    return adapter(model, tokenizer, runtime, str(Path(run).resolve()))


def whole_documents(config: DataConfig) -> Iterator[str]:
    """The documents of sources. A long plain text is read in pieces, which the tally counts as one document: here they
    are joined again."""
    tally = Tally(strict=config.strict)
    held: list[str] = []
    number = 0
    for piece in documents(config, tally):
        if held and tally.documents != number:
            yield "".join(held)
            held = []
        number = tally.documents
        held.append(piece)
    yield "".join(held)


def perplexity(
    run: Path | str,
    sources: Sequence[str] = (),
    stride: int = 0,
    *,
    text_column: str = "",
    set: Sequence[str] = (),
) -> Strided:
    """Strided perplexity of a run on every document of `sources`, or on what it held out itself.

    Args:
        stride: tokens by which the window moves; 0: half the model's context.
        text_column, set: how sources are read, as for `evaluate`.

    Raises:
        UserError: as `evaluate`, and for a stride that is not below the context.
    """
    path = Path(run)
    if not sources and was_imported(path):
        raise UserError(
            f"{run} was imported and has no text of its own; name some: isoflop eval {run} SOURCE --stride N"
        )
    model, tokenizer, snapshot, runtime = scored_model(path)
    config = from_dict(RunConfig, snapshot.config)
    if sources:
        named = reading_of(config.data, sources, text_column, set)
        texts: Iterable[str] = whole_documents(named)
    else:
        data: Any = data_of(read_run(run_folder_of(path)), config)
        texts = texts_of(data.heldout(), tokenizer)
    return strided(model, tokenizer, texts, stride or max(1, model.config.context // 2), runtime)
