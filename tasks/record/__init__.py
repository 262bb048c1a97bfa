"""Provenance of a run: its record, its lineage, its signature. Imports `tasks.steps` and what that imports."""
