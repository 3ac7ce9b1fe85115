"""Text from a model: decoding, sampling, streaming, conversations."""
