"""Hugging Face folders: reading, writing, folding back, and outputs that appear whole. Imports `mgaa.inputs` and what that imports."""
