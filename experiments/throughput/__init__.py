"""What the recurrence costs, against the machine, the position, budget and batch, and other ways to the same tokens.

python -m experiments.throughput checkpoints/smollm2-135m
"""
