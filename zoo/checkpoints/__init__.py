"""Checkpoints: reading and writing them safely, and putting weights into models."""
