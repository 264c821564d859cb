"""What watches a training and never changes it."""
