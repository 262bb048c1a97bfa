"""Published results of a run: metrics, allocation, model card and report. Imports `tasks.record`, `tasks.planning` and what these import."""
