"""The server that `trident serve` starts, and what watches over it."""
