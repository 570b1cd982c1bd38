"""The command line `ssd-cloud`. Importing it loads neither torch nor gRPC."""
