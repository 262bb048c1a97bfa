"""Published results: metrics, allocation, model card and report. Imports `tasks.record`, `tasks.planning` and what these import."""
