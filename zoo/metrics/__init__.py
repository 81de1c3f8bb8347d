"""Metrics: Frechet distances, codebook usage."""
