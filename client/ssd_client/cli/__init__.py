"""The command line `ssd-client`."""
