"""The plan in words."""

from dataclasses import replace

import pytest

from isoflop.budget import parse_budget
from isoflop.data.tokenizer import Tokenizer
from isoflop.model.presets import PRESETS
from isoflop.plan.advice import Facts, Keep
from isoflop.plan.asked import Asked
from isoflop.plan.destinations import destinations
from isoflop.plan.explain import rates_in_words, speed_in_words
from isoflop.plan.planner import finalize, propose
from isoflop.trainer import RunConfig
from isoflop.trainer.causal_lm import TextWorkload
from isoflop.trainer.workload import Text

ORDER = "export device vocabulary context shape parameters-N tokens-D batch steps optimiser schedule tokenizer"


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr("isoflop.plan.ceiling.measure_peak", lambda device: {"float32": 5e10, "bfloat16": 1e9})


def advice(*assignments: str, unique: int = 2_000_000, given: int = 0, keep: Keep | None = None):
    asked, workload = Asked(assignments), TextWorkload(Text(5e6, b""), given)
    proposal = propose(parse_budget("4e5tok"), asked.apply(RunConfig()), workload, asked, keep=keep or Keep())
    return finalize(proposal, Facts(unique, proposal.vocabulary, 2.5)), proposal


def lines(*assignments: str, **named):
    return {choice.name: choice for choice in advice(*assignments, **named)[0].choices}


def test_every_choice_has_a_line_with_its_value_and_reason():
    planned, _ = advice()
    config = planned.config
    assert [choice.name.replace(" ", "-") for choice in planned.choices] == ORDER.split()
    assert all(choice.value and choice.reason for choice in planned.choices)
    values = {choice.name: choice.value for choice in planned.choices}
    assert values["shape"].startswith(f"{config.model.layers} layers x {config.model.d_model}, heads: ")
    assert values["tokens D"] == f"{config.tokens:,}" and values["steps"] == f"{config.steps:,}"
    assert values["batch"] == f"{config.batch.sequences} x {config.model.context} = {config.tokens_per_step:,} tokens"
    assert values["tokenizer"] == "2.50 bytes per token"


def test_the_reason_for_the_vocabulary():
    assert lines()["vocabulary"].reason.startswith("chosen for")
    assert lines("data.vocab_size=700")["vocabulary"].reason == "set by you"
    assert lines(given=5000)["vocabulary"].reason == "the tokenizer that was given"
    assert lines(keep=Keep(model=True, rates=True))["vocabulary"].reason == "the tokenizer that was given"


def test_the_line_of_tokens_counts_epochs():
    assert lines(unique=100_000)["tokens D"].reason.endswith("epochs of the text")
    assert lines(unique=1000)["tokens D"].reason.endswith("find more text, or spend less")
    assert lines(unique=10**9)["tokens D"].reason.endswith("0% of the text")


def test_the_speed_is_shown_if_it_was_measured(monkeypatch):
    planned, proposal = advice()
    best = replace(proposal.candidates[0], tokens_per_second=12_345.0)
    assert speed_in_words(planned.config, proposal.candidates[0], 1) == ""
    assert speed_in_words(planned.config, best, 1) == "; 12,345 tokens/s measured"
    monkeypatch.setattr("isoflop.plan.explain.utilisation", lambda flops, device, dtype: 0.42)
    assert speed_in_words(planned.config, best, 1).endswith(", MFU 42% of the card's data sheet")


def test_rates_in_words():
    assert rates_in_words(RunConfig().optim).startswith("muon, lr 0.01")
    assert lines("optim.name=adamw")["optimiser"].value.startswith("adamw, lr ")


def test_the_plan_lists_export_formats():
    usual = lines()["export"]
    assert usual.value == "Hugging Face with its own code" and "--set model=portable makes it fit" in usual.reason
    assert lines("model=portable")["export"].value == "Hugging Face (apertus), GGUF (apertus)"
    export = lines("model=portable", "model.feed_forward=geglu", "model.attention.qk_norm=false")["export"]
    assert export.value == "Hugging Face (llama)" and "GGUF with --set model.feed_forward=gated" in export.reason
    advised = export.reason.partition("GGUF with --set ")[2].partition(";")[0].split()
    changed = lines("model=portable", "model.feed_forward=geglu", "model.attention.qk_norm=false", *advised)["export"]
    assert changed.value == "Hugging Face (llama), GGUF (llama)"
    parallel, _ = advice("model.wiring=parallel")
    assert parallel.choices[0].value == "Hugging Face with its own code" == parallel.plan().exports.words
    assert parallel.plan().to_dict()["exports"]["own_code"] == ["hf"]


def test_the_plan_knows_the_tokenizer_and_the_task():
    bpe = Tokenizer.train(["some words, and some more words"] * 9, 270).to_json()
    config = replace(RunConfig(), model=PRESETS["stories-260k"]())
    assert destinations(config).words == "Hugging Face (llama), GGUF (llama), llama2.c (llama)"
    known = destinations(config, bpe)
    assert known.words == "Hugging Face (llama), GGUF (llama)"
    assert known.reason == "llama2.c: its tokenizers are SentencePiece's"
    assert destinations(replace(RunConfig(), task="seq2seq"), bpe).words == "none"


def test_a_reason_says_set_by_you_where_it_was():
    choices = lines(
        "model.context=128",
        "model.layers=2",
        "model.d_model=64",
        "model.heads=2",
        "batch.sequences=16",
        "optim.name=adamw",
    )
    for name in ("context", "shape", "batch"):
        assert choices[name].reason.startswith("set by you") and "feeds best" not in choices[name].reason
    assert choices["optimiser"].reason.startswith("optim.name set by you; ")
    assert "set by you" not in choices["schedule"].reason + choices["vocabulary"].reason
    assert choices["tokens D"].reason.startswith("set by you, by the budget; ")  # the budget is in tokens


@pytest.mark.parametrize(
    ("assignment", "name"),
    [
        ("model.layers=2", "shape"),
        ("model.heads=2", "shape"),
        ("optim.matrix_lr=0.02", "optimiser"),
        ("schedule.warmup=0.1", "schedule"),
        ("schedule.name=cosine", "schedule"),
        ("runtime.threads=1", "device"),
        ("data.tokenizer=bytes", "tokenizer"),
    ],
)
def test_partly_set_choices_name_the_field(assignment, name):
    field = assignment.partition("=")[0]
    choices = lines(assignment)
    assert choices[name].reason.startswith(f"{field} set by you; ") and choices[name].reason != f"{field} set by you; "
    others = [choice for choice in choices.values() if choice.name != name and "set by you;" in choice.reason]
    assert not others


def test_parts_of_a_given_model_or_recipe_are_not_called_chosen():
    kept = lines(keep=Keep(model=True))
    assert kept["shape"].reason.startswith("as in the model that training starts from")
    assert kept["batch"].reason == "0.573 D^0.571 (Step Law)"
    both = lines(keep=Keep(model=True, rates=True))
    for name in ("shape", "context", "batch", "optimiser", "schedule"):
        assert both[name].reason.startswith("as in the configuration that you named")


def test_parameters_and_n_are_two_numbers():
    planned, _ = advice()
    choice = lines()["parameters N"]
    assert choice.value == f"{planned.parameters:,}"
    assert choice.reason.endswith(f"; {planned.plan().total_parameters:,} parameters in all")
    assert planned.plan().total_parameters > planned.parameters
