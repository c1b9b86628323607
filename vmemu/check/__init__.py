"""Whether a scenario will migrate: verdicts with reasons and remedies, before anything is run."""
