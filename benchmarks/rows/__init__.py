"""A module here has ``rows(context)``, which gives the rows of one subject."""

ORDER = (
    "latency",
    "placement",
    "delivery",
    "shm",
    "bulk",
    "boot",
    "collapse",
    "replay",
    "scaling",
    "start",
)
"""Of the modules, in the table; others come behind these."""
