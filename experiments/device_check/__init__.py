"""Whether a GPU or TPU computes what it must, and how near to its limits, in five minutes.

python -m experiments.device_check
"""
