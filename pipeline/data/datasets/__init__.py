"""Datasets, one module each.

A module has three functions; `pipeline.recipe.data_sources` says which module reads which source.

- `probe(source)` returns the state of a source whose content may change, for the fingerprint.
  `plan` calls it every time, so a module imports what only reading needs inside its functions.
- `read(context, images, seed, drops)` returns annotations by origin, those of test images marked
  as such; what cannot be used becomes a row of `drops`.
- `fetch(context, images, chosen)` returns where the chosen images of each origin are on this
  machine.
"""
