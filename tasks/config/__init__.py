"""`params.yaml` and the overrides of the command line, checked. Imports `tasks.cache`."""
