"""Reading zip and tar archives that came from elsewhere, within limits."""
