"""The encoder and the language model: trained here, or published ones."""
