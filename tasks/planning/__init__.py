"""Recipes, resource plans and checks of a run, before it starts. Imports `tasks.artifacts`, `tasks.config` and `tasks.cache`."""
