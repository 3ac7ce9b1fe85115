"""Text to tokens and back; nothing here knows a model."""
