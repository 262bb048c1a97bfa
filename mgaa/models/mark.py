"""Mark of a compressed model in its config. Needs no torch, because folders are examined before anything is loaded."""

METHOD = "mgaa"
NOTICE = "these weights are low-rank factors of the Python package mgaa; run `import mgaa` before you load them"
"""Entries in the config of a compressed model: its quantization method, and the name of its weights file (`mgaa.checkpoints.format`)."""
