"""What a run will do and take, and what it cannot, before it starts. Imports `tasks.artifacts`, `tasks.config` and `tasks.cache`."""
