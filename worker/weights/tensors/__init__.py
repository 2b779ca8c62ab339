"""Safetensors files: judging their headers, reading them fast, writing shards."""
