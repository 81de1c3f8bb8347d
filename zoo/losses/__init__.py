"""Objectives in pure torch: likelihoods, perceptual, adversarial, contrastive and entropy terms."""
