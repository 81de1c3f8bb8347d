"""One file per paper. The registry imports them all."""
