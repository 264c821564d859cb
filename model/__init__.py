"""The vision-language model in torch: it opens no data file and knows no flow."""
