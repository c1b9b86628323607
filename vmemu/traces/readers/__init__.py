"""One file a recorded format; :mod:`vmemu.traces.recordings` chooses among them by content."""
