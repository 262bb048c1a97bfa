"""An empty library: importing the real one costs seconds."""
