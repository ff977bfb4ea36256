"""What a trained model can do, beside its loss. transduction: edit-distance rates of an encoder-decoder's outputs."""
