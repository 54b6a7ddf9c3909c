"""Microbenchmarks of single kernels: see benchmarks/README.md."""
