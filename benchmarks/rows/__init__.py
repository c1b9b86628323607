"""A module here has ``rows(context)``, which gives the rows of one subject."""
