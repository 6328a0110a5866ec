"""What meets clients: the service, the loop of the engine, the thread that answers. Threads live here."""
