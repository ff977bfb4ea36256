"""What a trained model can do, apart from its loss.

suite          a suite, read from a small TOML file; suites/ has those that come with isoflop
templates      text from an item's fields
items          a suite's items, from files that the user has
methods        how items are asked and judged: METHODS, METRICS
batches        windows to score, in batches; a common beginning goes through the model once
likelihood     how likely a continuation is after a context
scores         the scores of a model on a suite
statistics     intervals, and tests of differences   · compare   several models on the same items
contamination  which items occur in the training text
perplexity     a window that slides over each text
harness        a model as lm-eval's
transduction   edit-distance rates of an encoder-decoder's outputs
"""
