"""The chat page; imports `model` and Gradio, so that a Space needs no more."""
