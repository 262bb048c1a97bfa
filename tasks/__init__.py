"""The cached steps of the flows, one per file, and what carries them.

A step takes and gives artifacts (`artifact`) and plain parameters; `step` and `stage` make a function one. What steps leave for each other
is read through `records`. Nothing here is imported by `mgaa`.
"""
