"""Artifacts, features and SQL on any fsspec filesystem; knows no torch."""
