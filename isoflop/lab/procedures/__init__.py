"""What can be done with an arm and a seed: train it, or measure something that needs no training. table.py lists them.

job           the inputs and outputs of each
train         a whole run and its measures
across        a whole run, measured on the held-out text of several sources
diagnosed     a whole run with diagnostics of the model's inside
pairs         a whole run on pairs, by an encoder-decoder or a decoder-only model
ngram         unigram and bigram models of the same text
initial       gradients and activations of fresh models, layer by layer
exact         properties that hold exactly or not: linearity, and what the future can reach
worked        an example small enough to follow by hand
published     what others reported
"""
