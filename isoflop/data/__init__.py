"""From text to tokens.

corpus     sources: files, folders, globs, standard input, the standard library; weights
walk       the files below a folder, and which of them are excluded
readers    one file of any format and compression -> documents, in constant memory
tally      counts of what was read and what was skipped, by kind
clean      exact duplicates, the train/held-out split by document, the sampled share
tokenizer  text <-> ids
survey     a quick estimate of the amount and kind of text
stretches  the held-out split: short pieces of documents, by a hash of their content
scan       first pass: the decision about each document, and a sample for the tokenizer
encode     second pass: documents -> tokens, in parallel processes (worker: one such process)
shards     token files with header and checksum, memory-mapped for reading
manifest   the contents of a folder of prepared data, with checksums (prepared: such a folder of text)
prepare    the complete preparation
loader     the tokens of step k, as a pure function of k
pairs, prepared_pairs, pair_loader    the same for pairs of an input and an output
"""
