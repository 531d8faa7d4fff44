"""Several processes against one, over gloo on the CPU."""
