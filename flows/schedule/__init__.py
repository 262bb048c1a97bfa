"""Runs without anyone who starts them. Imports `flows.parts` and `flows.command`."""
