"""Hugging Face folders: read, write, densify, and replace outputs atomically. Imports `mgaa.inputs` and what that imports."""
