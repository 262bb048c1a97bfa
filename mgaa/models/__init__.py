"""Models as they are: architectures as data, the linears in them, and layers that are low-rank, fused or narrower. Imports errors and
budgets alone."""
