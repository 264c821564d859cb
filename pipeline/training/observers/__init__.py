"""Observers of a training, which never change it."""
