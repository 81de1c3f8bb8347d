"""Pure torch networks and layers, one concept per file."""
