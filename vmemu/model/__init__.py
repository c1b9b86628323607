"""Models of data that people or other programs wrote, declared as with pydantic; see ``base``."""
