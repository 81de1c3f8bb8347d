"""Small weights trained by our own recipes, with a card each."""
