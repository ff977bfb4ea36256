"""THE list of what can be done with an arm and a seed. An entry is a function from a Job to what it measured."""

from isoflop.lab.procedures import exact, initial, ngram, published, train, worked
from isoflop.lab.procedures.job import Procedure

PROCEDURES: dict[str, Procedure] = {
    "train": Procedure(train.train, train.MEASURES, "a whole run, measured on held-out text", trains=True),
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
        published.published, published.MEASURES, "figures reported by others", reads=False, builds=False
    ),
}
