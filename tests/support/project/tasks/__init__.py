"""Steps of the project."""
