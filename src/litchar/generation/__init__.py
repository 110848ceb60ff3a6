"""Generating text: sampling, incremental decoding, scoring."""

from litchar.generation.sampling import Sampling, Step, generate, log_softmax, logits_to_probs

__all__ = ["Sampling", "Step", "generate", "log_softmax", "logits_to_probs"]
