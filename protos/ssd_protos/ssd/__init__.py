"""Generated; see protos/ssd/v1."""
