"""The Hugging Face Hub: revisions, cached files, and its failures in plain words."""
