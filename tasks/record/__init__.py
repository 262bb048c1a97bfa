"""What a run was made of: its record, its lineage, its signature. Imports `tasks.steps` and what that imports."""
