"""Does a run fit in memory? Estimated before anything is allocated, then tried with one batch."""
