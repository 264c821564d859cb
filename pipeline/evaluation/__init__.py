"""What models do with held-out images, against baselines, with intervals."""
