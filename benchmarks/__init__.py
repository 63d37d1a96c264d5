"""Benchmarks: throughput against bare matrix products, `fit` against peers, and small things.

Run with `make bench`; `make bench-report` makes docs/benchmarks.md and its pictures.
"""
