"""vmemu: a laboratory for post-copy live migration of guest memory.

PYTEST_DONT_REWRITE: pytest would rewrite the asserts of its plugins' packages, and warn whoever has
imported this one before it.
"""
