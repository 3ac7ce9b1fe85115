"""What the compilers of TPU and GPU make of the recurrence, on a machine that has neither."""
