"""Text in, tokens out.

corpus   where text comes from: files, folders, globs, standard input, the standard library; weights
walk     the files below a folder, and what is left out
readers  one file -> documents, whatever its ending and compression, in constant memory
tally    what was read and what was not, counted by kind
clean    which documents stay: exact duplicates, the train/held-out split, the sampled share
tokenizer
survey   a quick look: how much text is there, and what does it look like
stretches  the held-out side: short pieces of documents, by a hash of their content
scan     first reading: what becomes of each document, and a sample for the tokenizer
encode   second reading: documents -> tokens, in parallel processes (worker: one such process)
shards   token files with header and checksum, written once and memory-mapped ever after
manifest what a folder of prepared data holds, with checksums (prepared: such a folder of text)
prepare  where they meet
loader   which tokens does step k see? A pure function of k.
pairs, prepared_pairs, pair_loader    the same for pairs of an input and its output
"""
