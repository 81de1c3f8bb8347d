"""Pure torch objectives."""
