"""Frozen image networks: encoders, teachers, and the decoder of embeddings."""
