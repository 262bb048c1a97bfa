"""What a model is worth: perplexity, answers, continuations, and whether its logits are causal. Imports `mgaa.checkpoints` and what that
imports."""
