"""An OpenAI-compatible server of the published assistant."""
