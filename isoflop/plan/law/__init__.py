"""Scaling laws from a table of runs: numpy and scipy only, no torch."""
