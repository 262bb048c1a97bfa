"""Models one decoder block at a time: forward passes, offloading, resuming, and the resources of the machine. Imports `mgaa.models`."""
