"""``vmemu stress``: a scenario and random variations of it, run until one fails."""
