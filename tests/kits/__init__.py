"""Doubles and kits that tests and benchmarks share: servers that speak a protocol, and small real models."""
