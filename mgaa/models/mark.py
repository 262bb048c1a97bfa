"""The mark of a compressed model in its config. Needs no torch, because folders are looked at before anything is loaded."""

METHOD = "mgaa"
NOTICE = "these weights are low-rank factors of the Python package mgaa; run `import mgaa` before you load them"
"""What a compressed model says in its config in the place of a quantization and of the name of its weights (mgaa/checkpoints/format.py)."""
