"""Whether a run fits in memory: estimated before anything is allocated, then tried with one batch."""
