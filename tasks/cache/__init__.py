"""Cache of the steps: artifacts, manifests, cache keys, and the record of executions. Imports no other folder of `tasks`."""
