"""Tracking of runs in MLflow, the model registry, and the buffer for outages. Imports `tasks.results` and what that imports."""
