"""An adapter with which lmms-eval, the field's own benchmark tool, loads a published bundle."""
