"""``vmemu stress``: a scenario and random variations of it, run until one fails."""

TIMEOUT_S = 60.0
"""Of each run, where nobody says another, seconds."""
