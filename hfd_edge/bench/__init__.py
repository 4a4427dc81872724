"""Latency, throughput, memory and power of a bundle on this machine, and whether figures can be trusted."""
