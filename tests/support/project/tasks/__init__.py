"""Steps of the small project."""
