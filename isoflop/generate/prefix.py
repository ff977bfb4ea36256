"""What prompts have in common at their beginning, so that it is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_SAVED = 64  # tokens, for which a pass of its own is worth while

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Family:
    """Prompts that begin alike.

    Attributes:
        members: their numbers.
        shared: the tokens that they all begin with; 0: they have nothing in common that is worth while.
    """

    members: list[int]
    shared: int


def families(prompts: Sequence[Ids]) -> list[Family]:
    """Sort prompts into families, each prompt into one; what is in none worth while is in one that shares nothing.

    Neighbours in lexicographic order have the longest beginnings in common. A family takes the next one in as long as
    that saves no fewer tokens than to leave it out. At least the last token of each prompt is not shared, since what
    follows the prompt is said there.
    """
    plain = [prompt.tolist() for prompt in prompts]
    order = sorted(range(len(prompts)), key=plain.__getitem__)
    found: list[Family] = []
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
            found.append(Family(sorted(members), shared))
        else:
            loose += members
        at += len(members)
    if loose:
        found.append(Family(sorted(loose), 0))
    return sorted(found, key=lambda family: family.members[0])


def in_common(one: Ids, other: Ids) -> int:
    """How many tokens two prompts begin with alike."""
    n = min(len(one), len(other))
    differ = one[:n] != other[:n]
    return int(differ.argmax()) if differ.any() else n
