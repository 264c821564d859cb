"""The rendered dataset of the preset demo: coloured shapes, and what is said about them."""
