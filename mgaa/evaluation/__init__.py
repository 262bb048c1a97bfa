"""Measures of a model: perplexity, answers and their scores, continuations, and a check that its logits are causal. Imports
`mgaa.checkpoints` and what that imports."""
