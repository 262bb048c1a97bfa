"""A store looked after: what is needed, removed, pinned and shared. Imports `tasks.audit` and what that imports."""
