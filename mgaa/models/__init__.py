"""Models: architectures as data, the linears in them, and layers that are low-rank, fused or narrower. Imports only errors and budgets."""
