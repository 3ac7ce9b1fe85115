"""Trains a model through its state, for the policy and the budget that it will run with."""
