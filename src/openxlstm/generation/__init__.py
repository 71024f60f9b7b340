"""Text out of a model: a token picked, a state kept, characters streamed."""
