"""Reading and writing files whole, without knowing what is in them: atomic writes, locks, JSON, recipes."""
