"""Statistics of calibration data: moments of inputs and of output gradients. Imports `mgaa.evaluation` and what that imports."""
