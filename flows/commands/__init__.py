"""The commands of `phivision`; each imports only what it needs."""
