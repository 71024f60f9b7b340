"""Data: text by name or path, tokenizers, folders of tokens, and batches to train on."""
