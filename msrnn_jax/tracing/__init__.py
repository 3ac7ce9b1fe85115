"""Which tokens a model holds, and until when."""
