"""The gate, the bundle, its model card, and its export."""
