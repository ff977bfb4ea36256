"""A tokenizer that came out with fewer ids than were planned, since the text has no more pieces to join."""

import copy
from dataclasses import replace

from isoflop.plan.advice import Keep, Proposal
from isoflop.plan.asked import NOTHING, VOCABULARY, Asked
from isoflop.plan.candidates import Candidate
from isoflop.trainer import RunConfig

CLOSE = 0.9  # of the ids that were planned: above it the shapes and speeds that were found with these hold


def with_ids(config: RunConfig, ids: int, asked: Asked = NOTHING, keep: Keep | None = None) -> RunConfig:
    """A configuration whose model has as many rows as the tokenizer has ids.

    A model that was given (`keep`) keeps rows that it has beyond the ids asked of the tokenizer, which are padding.
    Rows that are as many as these ids were written down for a tokenizer that was not made: they are dropped. The rows
    of trained weights stay.
    """
    if keep is None or not keep.model:
        return asked.choose(config, "model", vocab_size=max(ids, 2))
    for_the_ids = keep.rates and not config.init and config.model.vocab_size == config.data.vocab_size
    if not for_the_ids or ids >= config.model.vocab_size or asked.names(VOCABULARY):
        return config
    return replace(config, model=replace(config.model, vocab_size=max(ids, 2)))


def is_far(proposal: Proposal, ids: int) -> bool:
    """Whether shapes and speeds have to be found anew for so many ids."""
    if proposal.workload.text is None or ids >= CLOSE * proposal.vocabulary:
        return False
    one = proposal.candidates[0].config
    return with_ids(one, ids, proposal.asked, proposal.keep) != one


def for_ids(proposal: Proposal, ids: int) -> Proposal:
    """What a proposal is made anew from, with as many ids as there are."""
    workload = copy.copy(proposal.workload)
    workload.vocab_size = ids
    config = with_ids(proposal.config, ids, proposal.asked, proposal.keep)
    return replace(proposal, workload=workload, config=config)


def rescaled(proposal: Proposal, ids: int) -> Proposal:
    """The same shapes with so many ids, without timing them: at the FLOP/s that were found with more."""
    candidates = []
    for one in proposal.candidates:
        config = with_ids(one.config, ids, proposal.asked, proposal.keep)
        faster = one.workload.flops_per_token(one.config) / one.workload.flops_per_token(config)
        speed = one.tokens_per_second * faster
        candidates.append(Candidate(config, one.workload, one.workload.weights(config), speed, one.extrapolated))
    return replace(proposal, candidates=tuple(candidates))
