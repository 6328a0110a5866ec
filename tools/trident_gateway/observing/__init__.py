"""What an operator sees of the gateway: metrics, the request log and traces."""
