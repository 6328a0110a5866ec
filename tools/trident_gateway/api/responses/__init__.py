"""The Responses API without any state on the server."""
