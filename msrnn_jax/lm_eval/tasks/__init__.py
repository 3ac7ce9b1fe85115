"""Tasks of local files for lm-evaluation-harness, and where they take their questions."""
