"""Readers that turn user input into the library's types: models, numbers, token rows, prompts. Imports `mgaa.blocks` and what that
imports."""
