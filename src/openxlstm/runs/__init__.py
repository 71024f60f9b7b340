"""Run folders: open, list and resume them, and find their text and tokenizer again."""
