"""Each record is written with its fixed keys and read back unchanged, whatever its file contains."""

import dataclasses
import json
import math
import types
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.records import (
    BadSteps,
    Calibration,
    CandidateShape,
    CardNotes,
    Choice,
    Contamination,
    DataAccount,
    DataRead,
    DecisionLine,
    Environment,
    EventLine,
    Expectation,
    Exports,
    HeldOutFigures,
    HeldOutLine,
    LedgerLine,
    PartScore,
    Plan,
    PreparedSource,
    ProfileSummary,
    PublishedScore,
    Record,
    Result,
    RunFolder,
    SampleLine,
    Settings,
    Side,
    SkipLine,
    SkippedFile,
    SourceRead,
    SuiteLine,
    SuiteScore,
    TextPredictability,
    TrainingLine,
    read_run,
)
from isoflop.records.surroundings import Call, Operation, RuntimeSettings

RECORDS = [
    BadSteps,
    Calibration,
    CandidateShape,
    CardNotes,
    Choice,
    Contamination,
    DataAccount,
    DataRead,
    DecisionLine,
    Environment,
    EventLine,
    Expectation,
    Exports,
    HeldOutFigures,
    HeldOutLine,
    LedgerLine,
    Operation,
    PartScore,
    Plan,
    PreparedSource,
    ProfileSummary,
    PublishedScore,
    Result,
    RuntimeSettings,
    SampleLine,
    Settings,
    Side,
    SkipLine,
    SkippedFile,
    SourceRead,
    SuiteLine,
    SuiteScore,
    TextPredictability,
    TrainingLine,
]
BASE = ("others", "keys")
FINITE = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def values(kind: Any) -> st.SearchStrategy:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if one is type(None) else values(one) for one in arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(WORDS, values(arguments[1]), max_size=2)
    if kind is Call:
        return st.builds(Call, name=WORDS, microseconds=FINITE)
    if isinstance(kind, type) and issubclass(kind, Record):
        return records(kind)
    simple = {bool: st.booleans(), int: st.integers(-(10**18), 10**18), float: FINITE, str: WORDS}
    return simple.get(kind, st.none() | st.integers() | WORDS)


def records(cls: Any) -> st.SearchStrategy:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{name: values(kind) for name, kind in hints.items() if name not in BASE})


def keys_of(cls: Any) -> list[str]:
    return [one.name for one in dataclasses.fields(cls) if one.name not in BASE]


@pytest.mark.parametrize("cls", RECORDS)
@settings(max_examples=30)  # for each of the classes
@given(data=st.data())
def test_records_are_read_back_as_written(cls, data):
    record = data.draw(records(cls))
    text = json.dumps(record.to_dict())
    back = cls.read(json.loads(text))
    assert back == record
    assert json.dumps(back.to_dict()) == text  # and is written again to the byte


@pytest.mark.parametrize("cls", [*RECORDS, Call])
@settings(max_examples=30)  # for each of the classes
@given(data=st.data())
def test_any_json_is_read_and_written_back_unchanged(cls, data):
    known = st.dictionaries(st.sampled_from(keys_of(cls)) | WORDS, JSON, max_size=6)
    value = data.draw(known | JSON)
    record = cls.read(value)
    assert record.missing == (not isinstance(value, dict) or not value)
    if isinstance(value, dict):
        written = record.to_dict()
        assert list(written) == list(value)
        # lists and objects lose only the items that nothing can be made of, and counts their fractions
        for key, item in value.items():
            if not isinstance(item, (list, dict)):
                rounded = isinstance(item, float) and math.isfinite(item) and written[key] == round(item)
                assert repr(written[key]) == repr(item) or rounded


def test_invalid_numbers_read_as_unknown():
    strange = [math.nan, math.inf, -math.inf, 10**400, True, "3", [], {}, None]
    for value in strange:
        assert TrainingLine.read({"loss": value}).loss is None
        assert Result.read({"step": value}).step is None
    assert TrainingLine.read({"step": 2.6, "loss": 3}).step == 3
    assert type(TrainingLine.read({"loss": 3}).loss) is int  # as in the file


def test_a_record_keeps_its_order_and_unknown_keys():
    plan = Plan.read({"new": [1], "tokens": "many", "steps": 10, "kind": "prior"})
    assert (plan.steps, plan.tokens, plan.others) == (10, None, {"new": [1], "tokens": "many"})
    longer = plan.updated(steps=20, seconds=None)
    written = '{"new": [1], "tokens": "many", "steps": 20, "kind": "prior", "seconds": null}'
    assert json.dumps(longer.to_dict()) == written
    assert longer.updated(tokens=5).to_dict()["tokens"] == 5


def test_a_choice_is_found_by_its_field_and_not_by_its_label():
    plan = Plan(choices=(Choice("shape", "2 x 64", "why"), Choice.of("tokens", "1,000", "20 a parameter")))
    shown = plan.shown("tokens", "2,000", "with +5m on top; {} before")
    assert [(choice.value, choice.reason) for choice in shown.choices] == [
        ("2 x 64", "why"),
        ("2,000", "with +5m on top; 1,000 before"),
    ]
    assert plan.to_dict()["choices"][1] == {"name": "tokens D", "value": "1,000", "reason": "20 a parameter"}


# The keys of each record in the order in which commit d4dffcd, before there were classes, wrote them.
WRITTEN = [
    (
        Plan(),
        "budget kind choices parameters total_parameters tokens flops steps seconds expected candidates calibration "
        "peak",
    ),
    (
        Plan().updated(predictability=TextPredictability(), unique_tokens=1, phases={"prepare": 1.0}),
        "budget kind choices parameters total_parameters tokens flops steps seconds expected candidates calibration "
        "peak predictability unique_tokens phases",
    ),
    (Plan.given(10, 640).updated(phases={}), "kind steps tokens phases"),
    (Plan.given(10, 640, Expectation()).updated(phases={}), "kind steps tokens expected phases"),
    (Plan.imported("a", "b", 1, 2), "kind source format parameters total_parameters"),
    (Plan.blank(), ""),
    (Expectation(), "bits_per_byte low high level source"),
    (Choice(), "name value reason"),
    (CandidateShape(), "layers d_model parameters tokens_per_second tokens expected_bits_per_byte chosen"),
    (Calibration(reason="r", device="cpu", dtype="float32", threads=2), "reason device dtype threads"),
    (Calibration(reason="r"), "reason"),
    (
        Result(),
        "step loss heldout seconds tokens flops aside_seconds tokens_per_second peak_share mfu peak_memory_bytes data "
        "guard phases verdict",
    ),
    (HeldOutFigures(), "nats_per_token perplexity bits_per_byte tokens bytes"),
    (
        HeldOutFigures(unit_error_rate=0.1, exact_match=0.2, inputs=3, edits=4, reference_units=5, unit="word"),
        "nats_per_token perplexity bits_per_byte tokens bytes unit_error_rate exact_match inputs edits "
        "reference_units unit",
    ),
    (BadSteps(), "spikes_kept steps_left_out left_out_tokens rollbacks passed_over_tokens"),
    (DataRead(), "tokens passed_over sources"),
    (SourceRead(), "tokens share asked epochs repeated_per_epoch passed_over"),
    (
        DataAccount(pieces=1, fingerprint="f", folder="d", seconds=1.0, reused=True),
        "vocab_size tokenizer bytes_per_token documents pieces empty duplicates duplicate_bytes in_heldout skipped "
        "skipped_files skipped_records skipped_bytes sampled_share train heldout sources fingerprint folder seconds "
        "reused",
    ),
    (
        DataAccount(variants=1, too_long=2),
        "vocab_size tokenizer bytes_per_token documents empty duplicates duplicate_bytes in_heldout variants too_long "
        "skipped skipped_files skipped_records skipped_bytes sampled_share train heldout sources",
    ),
    (Side(), "documents bytes tokens"),
    (Side(how="named", unsampled_bytes=0), "documents bytes tokens how unsampled_bytes"),
    (
        PreparedSource(),
        "pattern weight files documents bytes tokens duplicates heldout_documents unsampled_bytes",
    ),
    (SkippedFile(), "path reason bytes"),
    (TrainingLine(), "step loss grad_norm lr tokens seconds flops tokens_per_second"),
    (
        HeldOutLine(others={"load_entropy": 0.5}),
        "step tokens seconds flops heldout_loss heldout_bits_per_byte load_entropy",
    ),
    (SampleLine(), "step prompt text"),
    (SampleLine(reference="r"), "step prompt text reference"),
    (DecisionLine(), "at_step steps progress reason time"),
    (DecisionLine(seconds=0.0), "at_step steps progress reason seconds time"),
    (SkipLine(), "step kind action reason loss grad_norm tokens time"),
    (SkipLine(first=1, sequences=2), "step kind action reason loss grad_norm tokens time first sequences"),
    (
        LedgerLine(),
        "run time fingerprint predictability unique_tokens parameters tokens flops seed expected "
        "reached_bits_per_byte verdict",
    ),
]


@pytest.mark.parametrize("record, keys", WRITTEN, ids=lambda one: type(one).__name__)
def test_the_keys_of_records_are_unchanged(record, keys):
    assert list(record.to_dict()) == keys.split()


def test_an_event_is_written_with_its_details_in_their_order(tmp_path):
    RunFolder(tmp_path).event("stopped", step=3, signal=2)
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["event", "time", "step", "signal"]
    (event,) = RunFolder(tmp_path).lines("events", EventLine)
    assert (event.event, event.step, event.signal, event.processes) == ("stopped", 3, 2, None)


def test_a_run_with_only_a_configuration_reads_as_empty(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = read_run(tmp_path)
    assert run.plan.missing and run.result.missing and run.data.missing and run.profile.missing
    assert (run.status, run.training, run.settings.runtime.dtype) == ("stopped", [], None)
