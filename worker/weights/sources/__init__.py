"""The sources of an engine's models: the volume, or the small built-in demo model."""
