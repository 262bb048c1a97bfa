"""Readers of what steps have written. Imports `tasks.data` and `tasks.cache`."""
