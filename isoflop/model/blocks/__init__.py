"""The parts a model is built of, one small file a slot. Leaves: nothing here imports upward."""
