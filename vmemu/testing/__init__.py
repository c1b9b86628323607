"""Testing with pytest, and places where a run can be made to go wrong."""

SUFFIXES = (".vmemu.yaml", ".vmemu.yml")
"""How the names of scenarios end that are collected as tests."""
