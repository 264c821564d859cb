"""The rendered dataset of the preset demo: coloured shapes with captions and conversations."""
