"""Generation: cache.py keeps keys and values, layout.py orders the weights, sample.py chooses tokens, engine.py
turns them into text."""
