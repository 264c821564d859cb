"""A Hugging Face Space of the chat: the same page that `phivision chat` serves."""
