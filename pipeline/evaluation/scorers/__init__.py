"""Published metrics of captions and answers."""
