"""Checkpoints fetched from the Hugging Face hub."""
