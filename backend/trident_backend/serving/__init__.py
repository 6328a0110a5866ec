"""What meets clients: the service, the engine's loop, and the thread that answers. Threads live here and nowhere below."""
