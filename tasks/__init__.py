"""Cached steps of the flows, one per file, and the machinery that stores, records and reports them.

A step takes and returns artifacts (`tasks.cache.artifact`) and plain parameters; `tasks.cache.step` turns a function into one. Steps read
each other's files through `tasks.artifacts`. `mgaa` imports nothing from here.
"""
