"""From a dataset as others publish it to tables of images, texts and examples."""
