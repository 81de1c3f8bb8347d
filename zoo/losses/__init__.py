"""Objectives in pure torch: likelihoods, perceptual, adversarial and contrastive terms."""
