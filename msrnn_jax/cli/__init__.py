"""The commands of `msrnn`, one file each. Importing them imports no JAX: what is heavy is imported when one runs."""
