"""PROCEDURES: what can be run with an arm and a seed. An entry has a function from a Job to a Measured."""

from isoflop.lab.procedures import across, diagnosed, exact, initial, ngram, pairs, published, train, worked
from isoflop.lab.procedures.job import Procedure

PROCEDURES: dict[str, Procedure] = {
    "train": Procedure(train.train, train.MEASURES, "a whole run, measured on held-out text", trains=True),
    "across": Procedure(
        across.across, train.MEASURES, "a whole run, measured on the held-out text of each source", trains=True
    ),
    "diagnosed": Procedure(
        diagnosed.diagnosed, diagnosed.DIAGNOSED, "a whole run with diagnostics of the model's inside", trains=True
    ),
    "pairs": Procedure(
        pairs.pairs,
        pairs.PAIR_MEASURES,
        "a whole run on pairs: an encoder-decoder, or a decoder-only model on each pair as one text",
        trains=True,
        pairs=True,
        task=pairs.task_of,
    ),
    "ngram": Procedure(
        ngram.ngram, ngram.MEASURES, "a unigram or bigram model of the same text", seeded=False, builds=False
    ),
    "initial": Procedure(initial.initial, initial.MEASURES, "gradients and activations of a fresh model"),
    "linear": Procedure(exact.linear, exact.LINEAR, "how far a fresh stack of layers is from linear", reads=False),
    "future": Procedure(exact.future, exact.FUTURE, "what later tokens change in earlier outputs", reads=False),
    "worked": Procedure(
        worked.worked, worked.MEASURES, "a table of three words, normalised", reads=False, builds=False
    ),
    "published": Procedure(
        published.published, published.MEASURES, "published figures", reads=False, builds=False, cases=True
    ),
    "compute": Procedure(
        published.compute,
        published.COMPUTE,
        "training compute from published parameters and tokens",
        reads=False,
        builds=False,
        cases=True,
    ),
}
