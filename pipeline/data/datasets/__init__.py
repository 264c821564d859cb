"""Datasets, one module each.

A module has three functions; `pipeline.recipe.data_sources` says which module reads which source.

- `probe(source)` returns the state of a source whose content may change, for the fingerprint.
  `plan` calls it on every look, so a module imports what reading takes where it reads.
- `read(context, images, seed, drops)` returns the annotations of the training images and of the
  test images, by origin and in this order; what cannot be used becomes a row of `drops`.
- `fetch(context, images, chosen)` returns where the chosen images of each origin are on this
  machine.
"""
