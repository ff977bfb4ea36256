"""Text from a model: cache.py keeps keys and values, sample.py picks tokens, engine.py turns them into text."""
