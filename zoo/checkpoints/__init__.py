"""Readers of published checkpoints, one file per source; ``load`` puts them into models."""
