"""Downloads: whole files, and parts of remote archives, resumed and verified."""
