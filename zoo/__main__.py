"""``python -m zoo`` is the same as ``lightning``."""

from zoo.cli import main

if __name__ == "__main__":
    main()
