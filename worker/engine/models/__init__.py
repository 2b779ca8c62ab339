"""Models in memory: the pool of those that are loaded, their components, and how their weights arrive."""
