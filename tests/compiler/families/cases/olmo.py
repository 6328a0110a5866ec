"""OLMo 2."""

from tests.compiler.families.case import Case

CASES = [Case("olmo2")]
