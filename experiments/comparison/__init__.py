"""Every policy on one footing: perplexity, fidelity and a fact far back, at the same budgets on the same texts."""
