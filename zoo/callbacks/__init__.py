"""Lightning callbacks: EMA, evaluation, image grids, token dump."""
