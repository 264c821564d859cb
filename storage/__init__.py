"""Artifacts, features and SQL on any fsspec filesystem; this room knows no torch."""
