"""Sampling from a model."""

from litchar.generation.sampling import generate, logits_to_probs

__all__ = ["generate", "logits_to_probs"]
