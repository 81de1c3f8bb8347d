"""The papers, one file each, which the registry finds by itself."""
