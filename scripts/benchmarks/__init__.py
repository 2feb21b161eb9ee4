"""Benchmarks: each module measures one subject and gives rows; `scripts/bench` runs and prints them."""
