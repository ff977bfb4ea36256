"""Text from a model: cache.py keeps keys and values, layout.py orders the weights, sample.py picks tokens, engine.py
turns them into text."""
