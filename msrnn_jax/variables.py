"""Variables of the environment by which `msrnn launch` tells a process who it is, for `hosts.join`."""

COORDINATOR, PROCESSES, PROCESS = "MSRNN_COORDINATOR", "MSRNN_PROCESSES", "MSRNN_PROCESS"
CLUSTER = "cluster"  # in place of the coordinator: JAX asks the cluster's own environment
