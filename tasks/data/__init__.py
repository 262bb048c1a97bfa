"""Texts, conversations and questions, read from any source. Imports `tasks.cache`."""
