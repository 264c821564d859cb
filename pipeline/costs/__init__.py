"""Memory and time of a recipe, estimated before a run; imports no torch."""
