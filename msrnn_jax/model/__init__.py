"""The network: layers of the recurrence with weights, for one token or many."""
