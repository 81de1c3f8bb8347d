"""Metrics of reconstructions, generated images, captions and retrieval, and the record of a measurement."""
