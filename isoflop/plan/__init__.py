"""From a budget to a run: what to train, for how long, and what loss to expect."""
