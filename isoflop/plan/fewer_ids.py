"""Plans for a tokenizer that has fewer ids than planned, because the text has no more pairs to merge."""

import copy
from dataclasses import replace

from isoflop.plan.advice import Keep, Proposal
from isoflop.plan.asked import NOTHING, VOCABULARY, Asked
from isoflop.plan.candidates import Candidate
from isoflop.trainer import RunConfig

CLOSE = 0.9  # of the planned ids: with at least so many, the shapes and speeds found for the planned number hold


def with_ids(config: RunConfig, ids: int, asked: Asked = NOTHING, keep: Keep | None = None) -> RunConfig:
    """A configuration whose embedding and head have as many rows as the tokenizer has ids.

    A given model (`keep.model`) keeps its rows, in two cases: they are padding, more than the number of ids requested
    of the tokenizer; or its weights are trained. If it has exactly as many rows as ids were requested, and the
    tokenizer has fewer, the surplus rows are dropped.

    Args:
        ids: the number of the tokenizer's ids.
    """
    if keep is None or not keep.model:
        return asked.choose(config, "model", vocab_size=max(ids, 2))
    requested = keep.rates and not config.init and config.model.vocab_size == config.data.vocab_size
    if not requested or ids >= config.model.vocab_size or asked.names(VOCABULARY):
        return config
    return replace(config, model=replace(config.model, vocab_size=max(ids, 2)))


def needs_new_shapes(proposal: Proposal, ids: int) -> bool:
    """Whether shapes and speeds have to be found again for a tokenizer with this number of ids."""
    if proposal.workload.text is None or ids >= CLOSE * proposal.vocabulary:
        return False
    config = proposal.candidates[0].config
    return with_ids(config, ids, proposal.asked, proposal.keep) != config


def inputs_for_ids(proposal: Proposal, ids: int) -> Proposal:
    """A proposal whose workload and configuration have this number of ids; its candidates are still the old ones."""
    workload = copy.copy(proposal.workload)
    workload.vocab_size = ids
    config = with_ids(proposal.config, ids, proposal.asked, proposal.keep)
    return replace(proposal, workload=workload, config=config)


def rescaled(proposal: Proposal, ids: int) -> Proposal:
    """The same shapes with this number of ids, not timed again: at the FLOP/s that were measured with more ids."""
    candidates = []
    for old in proposal.candidates:
        config, workload = with_ids(old.config, ids, proposal.asked, proposal.keep), old.workload
        speed = old.tokens_per_second * (workload.flops_per_token(old.config) / workload.flops_per_token(config))
        candidates.append(Candidate(config, workload, workload.weights(config), speed, old.extrapolated))
    return replace(proposal, candidates=tuple(candidates))
