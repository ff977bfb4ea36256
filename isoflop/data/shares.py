"""The amount of text to prepare: the share of each source, and the size and share of the held-out pieces."""

from dataclasses import dataclass

from isoflop.data.config import DataConfig
from isoflop.data.parts import Part
from isoflop.data.stretches import Stretches, piece_size
from isoflop.data.survey import Survey

FEWEST_DOCUMENTS = 8  # that a sampled share should hold
HELDOUT_BYTES, HELDOUT_SHARE = 4_000_000, 0.05  # held-out text is capped at the larger of these


@dataclass(frozen=True)
class Shares:
    """The share of each part's documents that is prepared, by a hash independent of the split's.

    Attributes:
        sizes: estimated bytes of text of each part; empty if everything is prepared.
    """

    train: tuple[float, ...]
    heldout: float
    sizes: tuple[float, ...] = ()


def choose_shares(config: DataConfig, parts: list[Part], surveyed: Survey | None) -> Shares:
    """Shares for about `max_train_bytes` of training text, in proportion to the weights, and held-out text to match.

    A source that has less than its share is used completely; the share of every source should contain a few documents.
    """
    if not config.max_train_bytes or surveyed is None:
        return Shares((1.0,) * len(parts), 1.0)

    by_name = {survey.name: survey for survey in surveyed.sources}
    total = max(surveyed.bytes, 1)
    shares, sizes = [], []
    for part in parts:
        if part.heldout:
            shares.append(1.0)
            sizes.append(0.0)
            continue
        survey = by_name[part.source.name]
        weight = part.source.weight if part.source.weight is not None else survey.text_bytes / total
        wanted = max(weight * config.max_train_bytes, FEWEST_DOCUMENTS * survey.document_bytes)
        shares.append(min(1.0, wanted / max(survey.text_bytes, 1)))
        sizes.append(survey.text_bytes)

    heldout = surveyed.heldout_bytes if config.heldout else config.heldout_fraction * total
    cap = max(HELDOUT_BYTES, HELDOUT_SHARE * config.max_train_bytes)
    return Shares(tuple(shares), min(1.0, cap / max(heldout, 1.0)), tuple(sizes))


def choose_stretches(config: DataConfig, surveyed: Survey | None) -> Stretches | None:
    """The choice of held-out text by the second rule; None if that text is named, or chosen by the first rule."""
    if config.heldout or config.split == 1 or surveyed is None:
        return None
    wanted = config.heldout_fraction * surveyed.bytes
    if config.max_train_bytes:
        wanted = min(wanted, max(HELDOUT_SHARE, config.heldout_fraction) * config.max_train_bytes)
    return Stretches(piece_size(wanted), config.heldout_fraction, config.seed)
