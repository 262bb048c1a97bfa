"""Upkeep of a store: retention, garbage collection, pins and synchronization. Imports `tasks.audit` and what that imports."""
