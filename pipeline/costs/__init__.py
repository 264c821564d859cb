"""Memory and time of a recipe, computed before anything is there; imports no torch."""
