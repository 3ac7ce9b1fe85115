"""Files, and what is written of them; nothing here knows a model."""
