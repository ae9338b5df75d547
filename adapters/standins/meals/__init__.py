"""A stand-in of the order service, which keeps a record of its own of all that was done."""
