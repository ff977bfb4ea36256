"""What can be done with an arm and a seed: train it, or measure something that needs no training. table.py lists them.

job           what every procedure is given, and what it gives back
train         a whole run, and what it came to
ngram         unigram and bigram models of the same text
initial       gradients and activations of fresh models, layer by layer
exact         properties that hold exactly or not: linearity, and what the future can reach
worked        an example small enough to follow by hand
published     what others reported
"""
