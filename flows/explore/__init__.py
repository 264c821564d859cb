"""The explorer: the dataset of a run and what the model said about it, in a browser."""
