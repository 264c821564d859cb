"""How models perform on held-out images, against baselines, with intervals."""
