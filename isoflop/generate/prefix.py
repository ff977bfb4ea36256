"""Finds prompts with a common prefix, so that the prefix is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_SAVED = 64  # tokens that a shared prefix must save to be worth a separate pass

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """Prompts with a common prefix.

    Attributes:
        members: their numbers.
        shared: the length of the prefix; 0: none that is worth a separate pass.
    """

    members: list[int]
    shared: int


def families(prompts: Sequence[Ids]) -> list[Family]:
    """Sort prompts into families, each prompt into one; the last family has the prompts that share nothing.

    Neighbours in lexicographic order have the longest common prefixes. A family takes the next prompt in as long as
    that saves at least as many tokens as leaving it out. The last token of each prompt is never shared, since its
    logits choose the first new token.
    """
    plain = [prompt.tolist() for prompt in prompts]
    order = sorted(range(len(prompts)), key=plain.__getitem__)
    grouped: list[Family] = []
    loose: list[int] = []

    at = 0
    while at < len(order):
        members, shared = [order[at]], len(prompts[order[at]]) - 1
        while at + len(members) < len(order):
            following = order[at + len(members)]
            common = min(shared, in_common(prompts[members[-1]], prompts[following]), len(prompts[following]) - 1)
            if len(members) * common < (len(members) - 1) * shared or not common:
                break
            members.append(following)
            shared = common
        if (len(members) - 1) * shared >= LEAST_SAVED:
            grouped.append(Family(sorted(members), shared))
        else:
            loose += members
        at += len(members)

    if loose:
        grouped.append(Family(sorted(loose), 0))
    return sorted(grouped, key=lambda family: family.members[0])


def in_common(one: Ids, other: Ids) -> int:
    """The length of the longest common prefix of two prompts."""
    n = min(len(one), len(other))
    differ = one[:n] != other[:n]
    return int(differ.argmax()) if differ.any() else n
