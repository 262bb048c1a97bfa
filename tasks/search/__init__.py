"""Trials of a search, their table and figure. Imports `tasks.record` and what that imports."""
