"""What a run reads: text by name or by path, its tokens, and batches of them."""
