"""One decoder block after another: passing, offloading, resuming, and what the machine has. Imports `mgaa.models`."""
