"""How csm-tiny was made: corpus, codec, language model, export, evaluation."""
