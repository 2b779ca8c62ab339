"""Techniques that make a video sooner, one file each."""
