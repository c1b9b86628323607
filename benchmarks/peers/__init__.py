"""Others that do what vmemu does, measured beside it."""
