"""Perplexity of texts under many policies and budgets."""
