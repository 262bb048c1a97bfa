"""Linear algebra on statistics: spectra, regressions, and the CUDA streams that they run on. Imports `mgaa.statistics` and what that
imports."""
