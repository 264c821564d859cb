"""The Hugging Face Hub: revisions, cached files, and clear messages for its failures."""
