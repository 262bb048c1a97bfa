"""The parameters: `params.yaml` with the overrides of the command line, validated. Imports `tasks.cache`."""
