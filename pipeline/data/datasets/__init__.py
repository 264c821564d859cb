"""Datasets with a layout of their own."""
