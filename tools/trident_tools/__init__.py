"""The command `trident`: build, serve, chat."""
