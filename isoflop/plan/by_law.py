"""What a plan expects, by the law of a ladder where one holds: which does, what it chooses, how it is said."""

from collections.abc import Callable, Sequence
from functools import partial

from isoflop.plan import fitted
from isoflop.plan.advice import Facts, Proposal
from isoflop.plan.candidates import Candidate
from isoflop.plan.fitted import Fitted
from isoflop.plan.hierarchy import Observation
from isoflop.plan.predictability import Predictability
from isoflop.plan.prior import expect
from isoflop.plan.settings import with_rates
from isoflop.records import Choice, Expectation

Forecast = Callable[[float, float], Expectation]  # of N and D


def law_of(proposal: Proposal, facts: Facts) -> Fitted | None:
    """The law that holds for the prepared data and the recipe; None if there is none."""
    if proposal.keep.model or not proposal.laws:
        return None
    one, asked = proposal.candidates[0].config, proposal.asked
    config = with_rates(one, asked) if proposal.workload.rates_by_width and not proposal.keep.rates else one
    return fitted.holding(proposal.laws, facts.fingerprint, config)


def why_not(proposal: Proposal, facts: Facts) -> str:
    """Why the law whose tokenizer a plan took does not hold for it, in words; empty: it does, or there is none."""
    law = proposal.law
    if law is None or law_of(proposal, facts) is not None:
        return ""
    one, about = proposal.candidates[0].config, law.about
    if about.fingerprint != facts.fingerprint:
        why = "the text was prepared otherwise, or another share of it"
    elif about.context != one.model.context:
        why = f"model.context is {one.model.context} and not {about.context}"
    else:
        why = "the learning rates are others"
    return f"note: the law of the ladder on this text does not hold for this run: {why} ({law.path})"


def score_of(candidate: Candidate, proposal: Proposal, unique_tokens: int, law: Fitted | None) -> float:
    """What the best candidate minimises: see Candidate.score; where there is a law, the loss that it expects."""
    budget = proposal.budget
    if law is None or budget.kind in ("tokens", "steps"):
        return candidate.score(budget, unique_tokens)
    return law.mean_loss(candidate.weights, candidate.tokens(budget), unique_tokens)


def forecast_of(
    law: Fitted | None,
    unique_tokens: int,
    text: Predictability | None,
    pilots: Sequence[Observation],
    other: Sequence[str],
) -> Forecast | None:
    """What runs of N parameters on D tokens should reach: by the law, else by the prior and pilots; None where nothing
    can be expected.

    Args:
        pilots: runs on the same text; other: how the recipe differs from the prior's, which needs pilots.
    """
    if law is not None:
        return partial(law.expect, unique_tokens=unique_tokens)
    if text is None or (other and not pilots):
        return None
    return partial(expect, unique_tokens=unique_tokens, text=text, pilots=pilots, other_recipe=bool(other))


def law_choice(law: Fitted, parameters: int, tokens: int) -> Choice:
    """The law among the choices of the plan."""
    best = float(law.law.n_star(6.0 * parameters * tokens))
    about, where = law.about, law.path
    value = f"{about.runs} runs on this text, {about.smallest or 0:.2g} to {law.largest:.2g} FLOPs"
    reason = f"shape and expected loss are by its law, whose best N for this compute is {best:,.3g}; {where}"
    return Choice(name="ladder", value=value, reason=reason)
