"""Marks of AI origin: metadata in every file and, with a key, a signed C2PA manifest; and reading them again."""
