"""Benchmarks of smolvla_edge: see benchmarks/README.md."""
