"""Factors that are fitted to the dense model, block by block, and compression that calibrates on already compressed blocks. Imports
`mgaa.levels` and what that imports."""
