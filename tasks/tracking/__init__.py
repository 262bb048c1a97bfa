"""Runs in MLflow, the registry, and the buffer for outages. Imports `tasks.results` and what that imports."""
