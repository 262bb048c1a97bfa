"""Scheduled runs. Imports `flows.parts` and `flows.command`."""
