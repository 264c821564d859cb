"""Frozen patch embeddings of every image, in shards."""
