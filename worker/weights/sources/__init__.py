"""Where the models of an engine come from: the volume, or the small built-in demo model."""
