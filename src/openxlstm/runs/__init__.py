"""Runs: opening, training, resuming and listing them. Nothing here prints."""
