"""The training of csm-tiny: corpus, codec, language model, export, evaluation."""
