"""What is measured, and how it reaches the server's metrics page."""
