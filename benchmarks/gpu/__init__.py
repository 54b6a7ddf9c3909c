"""Benchmarks on a GPU; unlike those on the CPU they need torch."""
