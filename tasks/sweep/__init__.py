"""Points of a sweep, their table and figure. Imports `tasks.planning`, `tasks.steps` and what these import."""
