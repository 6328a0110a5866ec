"""`trident keys`: make, list and revoke the API keys of a gateway.

Owns the command. A key is printed once, when it is made; what the file has of it is enough to know it again, and not to
use it. Never talks to a gateway, which sees for itself that the file has changed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.access.key_file import KeyRecord, change_keys, new_key, read_keys
from trident_gateway.callers import CallerLimits

#: Option -> the limit's name in the file, and what the option's help says.
_LIMITS = {
    "rpm": ("requests_per_minute", "requests that may begin in a minute"),
    "input-tpm": ("input_tokens_per_minute", "tokens of prompts in a minute"),
    "output-tpm": ("output_tokens_per_minute", "tokens of answers in a minute"),
    "concurrency": ("concurrency", "requests at the same time"),
    "day-tokens": ("tokens_per_day", "tokens of prompts and answers in a day (UTC)"),
    "month-tokens": ("tokens_per_month", "tokens of prompts and answers in a calendar month (UTC)"),
    "output-reserve": ("output_reserve", "tokens of an answer that are held from its beginning (default: 1024)"),
}

_SHORT = {
    "requests_per_minute": "requests/min",
    "input_tokens_per_minute": "input/min",
    "output_tokens_per_minute": "output/min",
    "concurrency": "at once",
    "tokens_per_day": "tokens/day",
    "tokens_per_month": "tokens/month",
}

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key, and print it this once")
    listing = actions.add_parser("list", help="list the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="take a key back, within seconds")
    for action in (create, listing, revoke):
        action.add_argument("--keys", type=Path, required=True, metavar="FILE", help="the file that the gateway reads")
    create.add_argument("--tenant", required=True, help="whom the key's requests are counted to")
    create.add_argument("--models", type=_names, metavar="A,B", help="models that it may use (default: all)")
    for option, (_, meaning) in _LIMITS.items():
        create.add_argument(f"--{option}", type=int, metavar="N", help=meaning)
    create.add_argument(
        "--priority",
        type=int,
        default=0,
        metavar="N",
        help="level of its requests, and the most urgent one they may ask for; -100 goes first, 100 last (default: 0)",
    )
    create.add_argument(
        "--expires", type=_duration, metavar="30d", help="minutes, hours or days until it ends to be valid"
    )
    create.add_argument("--note", default="", help="for whoever reads the list")
    revoke.add_argument("id", help="of the key, as the list shows it; not the key itself")


def run(args: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    actions: dict[str, Callable[[argparse.Namespace], None]] = {"create": _create, "list": _list, "revoke": _revoke}
    actions[args.action](args)
    return 0


def _create(args: argparse.Namespace) -> None:
    now = _now()
    given = {name: getattr(args, option.replace("-", "_")) for option, (name, _) in _LIMITS.items()}
    try:
        limits = msgspec.convert({name: limit for name, limit in given.items() if limit is not None}, CallerLimits)
        key, record = new_key(
            args.tenant,
            now,
            models=args.models,
            limits=limits,
            priority=args.priority,
            expires=None if args.expires is None else now + args.expires,
            note=args.note,
        )
        # The gateway must be able to read what is written.
        msgspec.json.decode(msgspec.json.encode(record), type=KeyRecord)
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError) as error:
        raise ConfigError(f"no key was made: {error}") from None
    change_keys(args.keys, lambda keys: (*keys, record))
    print(key)


def _list(args: argparse.Namespace) -> None:
    rows = [("id", "tenant", "models", "limits", "priority", "created", "state", "note")]
    for key in read_keys(args.keys):
        models = "all" if key.models is None else ",".join(key.models)
        created = f"{key.created:%Y-%m-%d}"
        rows.append((key.id, key.tenant, models, _shown(key.limits), str(key.priority), created, _state(key), key.note))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _revoke(args: argparse.Namespace) -> None:
    def without(keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        if all(key.id != args.id for key in keys):
            raise ConfigError("there is no key with this id; `trident keys list` shows the ids")
        now = _now()
        return tuple(
            msgspec.structs.replace(key, revoked=now) if key.id == args.id and key.revoked is None else key
            for key in keys
        )

    change_keys(args.keys, without)


def _state(key: KeyRecord) -> str:
    if key.revoked is not None:
        return f"revoked {key.revoked:%Y-%m-%d}"
    if key.expires is None:
        return "valid"
    return f"{'expired' if key.expires <= _now() else 'valid until'} {key.expires:%Y-%m-%d}"


def _shown(limits: CallerLimits) -> str:
    every = ((words, getattr(limits, name)) for name, words in _SHORT.items())
    return ", ".join(f"{limit:,} {words}" for words, limit in every if limit is not None) or "none"


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("names no model")
    return names


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30d, 12h or 90m")
    return int(found[1]) * _UNITS[found[2]]


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)
