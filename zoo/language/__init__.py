"""Language models, their text, and what a bridge needs to speak with them."""
