"""Factors that are fitted to the dense model, block after block, and the compression that measures behind compressed blocks. Imports
`mgaa.levels` and what that imports."""
