"""How much each caller may use: rates, concurrency and quotas, reserved before a call and settled after it."""
