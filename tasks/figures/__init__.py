"""Figures drawn from plain numbers. Imports no other folder of `tasks`."""
