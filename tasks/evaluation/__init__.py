"""Zero-shot tasks, protocols and intervals. Imports `tasks.data` and `tasks.cache`."""
