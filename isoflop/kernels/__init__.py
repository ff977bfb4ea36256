"""Compiled kernels for a training step on a CPU: one C file, compiled on the machine where it runs, and its calls."""
