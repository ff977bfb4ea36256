"""Distribution, applied from outside: the model and the trainer's step do not know of it."""
