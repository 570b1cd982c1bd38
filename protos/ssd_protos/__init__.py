"""The wire, generated from protos/ssd/v1 by `make protos`."""
