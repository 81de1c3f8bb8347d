"""DataModules, one per file."""
