"""From vectors to codes: every quantizer behind one base class."""
