"""An adapter that lets lmms-eval, the field's benchmark tool, load a published bundle."""
