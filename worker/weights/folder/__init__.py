"""A model folder on the volume: where it is, what belongs into it, its record, and whether it is intact."""
