"""What a caller may use: reserved before a call, settled after it.

Owns what a client is told of its limits: headers and refusals. Never counts anything: a store does.
"""

from __future__ import annotations

from trident_gateway.callers import Caller
from trident_gateway.settings import GatewaySettings


class Reservation:
    """What one request holds of its caller's limits, until it is settled."""

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell the caller what is left, as of the reservation."""
        raise NotImplementedError

    def correct_input(self, input_tokens: int) -> None:
        """Put the number of tokens that the prompt has in the place of the estimate; returns at once."""
        raise NotImplementedError

    async def settle(self, input_tokens: int | None, output_tokens: int) -> None:
        """Pay for what was used and give the rest back.

        Only the first call counts. It raises nothing, and is carried to its end also where the caller is cancelled, so
        that it may stand in any `finally`.

        Args:
            input_tokens: of the prompt; None where that never became known, for what was last taken for it. 0 where
                the request did not reach a server.
            output_tokens: of all answers.
        """
        raise NotImplementedError


class Limiter:
    """Holds callers to their limits."""

    @classmethod
    def of(cls, settings: GatewaySettings) -> Limiter:
        """Return the one that a gateway's settings ask for; nothing is connected yet."""
        raise NotImplementedError

    async def start(self) -> None:
        """Begin to keep reservations alive and to watch the store; returns at once."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop, and let go of the store."""
        raise NotImplementedError

    async def reserve(self, caller: Caller, input_tokens: int, output_tokens: int) -> Reservation:
        """Hold what a request may use.

        Args:
            caller: whose limits.
            input_tokens: of the prompt, or an estimate.
            output_tokens: that the request may have in all its answers.

        Raises:
            TooLargeForLimitError: it is larger than a limit.
            QuotaError: a quota is used up.
            RateLimitError: it comes too soon.
            UnavailableError: limits cannot be counted now, and the gateway is told to refuse then.
        """
        raise NotImplementedError
