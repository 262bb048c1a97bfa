"""What users hand in, as the library computes with it: models, numbers, token rows, prompts. Imports `mgaa.blocks` and what that
imports."""
