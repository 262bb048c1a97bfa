"""What ranks and widths are chosen by: allocations as files, channels, and the latency of a device. Imports `mgaa.decomposition` and what
that imports."""
