"""A run on disk and in time: its folder, its loggers, going on where it stopped."""
