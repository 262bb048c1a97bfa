"""Basis of the choice of ranks and widths: allocations as files, channel scores, and the latency of a device. Imports `mgaa.decomposition`
and what that imports."""
