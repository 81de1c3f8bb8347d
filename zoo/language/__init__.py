"""Language models, tokenizers of text, vocabularies, and sequences of text and image tokens."""
