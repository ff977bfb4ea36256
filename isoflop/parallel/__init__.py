"""Distribution, applied from outside: the model and the training step do not depend on it."""
