"""The options of `trident gateway`, and the gateway's settings that they stand for."""
