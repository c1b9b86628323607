"""The parts of :mod:`vmemu.config`, which is the one to import from."""
