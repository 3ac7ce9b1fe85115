"""One layer's state: write, attend, observe, forget."""
