"""JSON Web Tokens of an identity provider."""

from __future__ import annotations


class TokenVerifier:
    """Tells whether a token is valid, and whom it names."""
