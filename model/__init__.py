"""The vision-language model in torch: it opens no data file and imports no flow."""
