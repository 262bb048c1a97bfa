"""Readers of texts, conversations and questions, from any source. Imports `tasks.cache`."""
