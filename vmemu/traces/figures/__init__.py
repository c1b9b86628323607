"""What a trace holds: figures, reuse, and what is missing."""
