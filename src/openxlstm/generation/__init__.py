"""Generation: sampling, prefill and decoding, and streaming of text."""
