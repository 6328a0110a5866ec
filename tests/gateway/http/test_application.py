"""The way of a request through the HTTP room: found, let in, answered once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.http.room import JSON, Reply, Room, echo, endpoint, run, until
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.errors import ApiError, EngineFaultError, InvalidRequestError, RateLimitError
from trident_gateway.http.application import Application
from trident_gateway.http.lifecycle import Lifecycle, Phase
from trident_gateway.http.probes import Probes
from trident_gateway.observing.tracing import NoTracer
from trident_gateway.settings import GatewaySettings, HttpLimits

SMALL = GatewaySettings(http=HttpLimits(max_body_bytes=2048))


@endpoint("/v1/models/{model:path}", "GET")
async def model(request: HttpRequest, out: AnswerSink) -> None:
    await out.send_json(json.dumps(dict(request.path_params)).encode())


def test_application_answers_with_the_headers_that_every_answer_has() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            reply = await room.ask("POST", "/v1/x", b'{"a": 1}', JSON)
            assert (reply.status, reply.body) == (200, b'{"a": 1}')
            assert reply.headers["content-type"] == "application/json"
            assert reply.headers["cache-control"] == "no-store"
            assert reply.headers["x-request-id"].startswith("req_")
            assert int(reply.headers["openai-processing-ms"]) >= 0
            assert "server" not in reply.headers
            (record,) = room.records
            assert (record.status, record.route, record.is_error) == (200, "/v1/x", False)
            assert record.request_id == reply.headers["x-request-id"]

    run(test)


@pytest.mark.parametrize(
    ("sent", "is_taken"),
    [("abc-1.2_3", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("é", False), ("a;b", False)],
)
def test_application_echoes_the_clients_request_id_if_it_is_a_valid_one(sent: str, is_taken: bool) -> None:
    async def test() -> None:
        async with Room(echo) as room:
            for path in ("/v1/x", "/nothing"):
                reply = await room.ask("POST", path, b"{}", {**JSON, "x-request-id": sent})
                assert (reply.headers["x-request-id"] == sent) is is_taken

    run(test)


def test_application_answers_every_path_and_method() -> None:
    async def test() -> None:
        async with Room(echo, model) as room:
            missing = await room.ask("POST", "/v1/nothing", b"{}", JSON)
            wrong = await room.ask("GET", "/v1/x")
            below = await room.ask("DELETE", "/v1/models/a/b")
            for reply, status, code in (
                (missing, 404, "not_found"),
                (wrong, 405, "method_not_allowed"),
                (below, 405, "method_not_allowed"),
            ):
                assert reply.status == status
                assert (reply.error()["type"], reply.error()["code"]) == ("invalid_request_error", code)
                assert reply.headers["x-request-id"]
            assert (wrong.headers["allow"], below.headers["allow"]) == ("POST", "GET")
            reply = await room.ask("GET", "/v1/models/org/name%20x")
            assert json.loads(reply.body) == {"model": "org/name x"}
            head = await room.ask("HEAD", "/v1/models/a")
            assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "14")

    run(test)


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "application/jsonx"],
)
def test_application_refuses_bodies_that_are_not_json(kind: str) -> None:
    async def test() -> None:
        async with Room(echo) as room:
            reply = await room.ask("POST", "/v1/x", b"{}", {"content-type": kind} if kind else {})
            assert (reply.status, reply.error()["code"]) == (415, "unsupported_media_type")

    run(test)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_application_takes_json_however_it_is_called(kind: str) -> None:
    async def test() -> None:
        async with Room(echo) as room:
            assert (await room.ask("POST", "/v1/x", b"{}", {"content-type": kind})).status == 200

    run(test)


def test_application_refuses_compressed_bodies() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            reply = await room.ask("POST", "/v1/x", b"{}", {**JSON, "content-encoding": "gzip"})
            assert reply.status == 415

    run(test)


def test_application_refuses_a_body_above_the_limit_by_its_length_and_by_its_chunks() -> None:
    async def test() -> None:
        async with Room(echo, settings=SMALL) as room:
            fits = await room.ask("POST", "/v1/x", b"x" * 2048, JSON)
            assert (fits.status, len(fits.body)) == (200, 2048)
            client = await room.connect()
            client.writer.write(
                b"POST /v1/x HTTP/1.1\r\nhost: [::1]\r\ncontent-type: application/json\r\ncontent-length: 2049\r\n\r\n"
            )
            by_length = await client.reply()  # without a byte of the body
            # A client that sends it nevertheless is not reset, and may go on.
            client.writer.write(b"x" * 2049)
            client.send("POST", "/v1/x", headers={**JSON, "transfer-encoding": "chunked"})
            client.writer.write((b"400\r\n" + b"x" * 1024 + b"\r\n") * 3)
            by_chunks = await client.reply()  # without the end
            client.writer.write(b"0\r\n\r\n")
            client.send("POST", "/v1/x", b"{}", JSON)
            assert (await client.reply()).status == 200
            client.close()
            for reply in (by_length, by_chunks):
                assert (reply.status, reply.error()["code"]) == (413, "request_too_large")
                assert "2048" in reply.error()["message"]

    run(test)


def test_application_gives_errors_their_form_and_headers() -> None:
    @endpoint()
    async def limited(_request: HttpRequest, out: AnswerSink) -> None:
        out.add_headers([(b"x-ratelimit-limit-requests", b"1")])
        raise RateLimitError("Too soon.", kind="requests", limit="requests", retry_after_s=1.2)

    async def test() -> None:
        async with Room(limited) as room:
            reply = await room.ask("POST", "/v1/x", b"{}", JSON)
            assert reply.status == 429
            assert reply.error() == {
                "message": "Too soon.", "type": "requests", "code": "rate_limit_exceeded", "param": None
            }  # fmt: skip
            assert reply.headers["retry-after"] == "2"
            assert reply.headers["retry-after-ms"] == "1200"
            assert reply.headers["x-ratelimit-limit-requests"] == "1"
            (record,) = room.records
            assert (record.is_error, record.error_code) == (True, "rate_limit_exceeded")
            assert b'limit_refusals_total{kind="requests"} 1\n' in room.metrics.render()

    run(test)


def test_application_tells_a_client_of_a_fault_no_more_than_that_there_was_one() -> None:
    @endpoint()
    async def broken(request: HttpRequest, _out: AnswerSink) -> None:
        raise ValueError(f"canary {await request.body()!r}")

    @endpoint("/v1/silent")
    async def silent(request: HttpRequest, out: AnswerSink) -> None:
        """Return without an answer."""

    @endpoint("/v1/header")
    async def bad_header(_request: HttpRequest, out: AnswerSink) -> None:
        out.add_headers([(b"x-bad", b"a\nb")])
        await out.send_json(b"{}")

    async def test() -> None:
        async with Room(broken, silent, bad_header) as room:
            for path in ("/v1/x", "/v1/silent"):
                reply = await room.ask("POST", path, b'"canary"', JSON)
                error = reply.error()
                assert (reply.status, error["type"], error["code"], error["param"]) == (500, "server_error", None, None)
                assert "canary" not in error["message"]
            client = await room.connect()
            client.send("POST", "/v1/header", b"{}", JSON)
            assert b"canary" not in await client.rest()
            assert not any("canary" in line for line in room.complaints)
            assert room.complaints[0].startswith("internal error: ValueError at test_application.py:")
            assert room.lifecycle.num_running == 0

    run(test)


@pytest.mark.parametrize("error", [InvalidRequestError("No.", param="messages[0].role"), EngineFaultError()])
def test_application_ends_a_stream_that_has_begun_with_an_error_event(error: ApiError) -> None:
    @endpoint()
    async def failing(_request: HttpRequest, out: AnswerSink) -> None:
        out.expect_events()
        await out.send_events(b"data: 1\n\n")
        raise error

    async def test() -> None:
        async with Room(failing) as room:
            reply = await room.ask("POST", "/v1/x", b"{}", JSON)
            assert reply.status == 200
            assert reply.chunks[0] == b"data: 1\n\n"
            event = reply.chunks[1]
            assert event.startswith(b"data: ")
            assert event.endswith(b"\n\n")
            assert event[6:-2] == error.body()
            assert b"[DONE]" not in reply.body
            (record,) = room.records
            assert (record.status, record.is_error) == (200, True)

    run(test)


def test_application_refuses_new_requests_in_the_last_part_of_a_drain() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            kept = await room.connect()
            kept.send("POST", "/v1/x", b"{}", JSON)
            assert "connection" not in (await kept.reply()).headers
            room.lifecycle.leave_service(asyncio.get_running_loop().time())
            served = await room.ask("POST", "/v1/x", b"{}", JSON)
            assert (served.status, served.headers["connection"]) == (200, "close")
            room.lifecycle.phase = Phase.REFUSING
            refused = await room.ask("POST", "/v1/x", b"{}", JSON)
            error = refused.error()
            assert (refused.status, error["type"], error["code"]) == (503, "service_unavailable_error", "draining")
            assert {name: refused.headers[name] for name in ("retry-after", "x-should-retry", "connection")} == {
                "retry-after": "1", "x-should-retry": "true", "connection": "close"
            }  # fmt: skip
            # Its client has kept this one since before the drain, and could not know.
            kept.send("POST", "/v1/x", b"{}", JSON)
            last = await kept.reply()
            assert (last.status, last.headers["connection"]) == (200, "close")
            assert await kept.rest() == b""

    run(test)


def test_application_probes_say_where_the_gateway_stands() -> None:
    async def test() -> None:
        async with Room(echo) as room:

            async def probe(path: str, port: int) -> tuple[int, str]:
                reply = await room.ask("GET", path, port=port)
                return reply.status, json.loads(reply.body)["status"]

            private = room.private_port
            assert await probe("/health", room.port) == await probe("/ready", private) == (200, "ready")
            assert await probe("/live", private) == (200, "live")
            room.has_model = False
            assert await probe("/health", room.port) == await probe("/ready", private) == (503, "no_model")
            room.is_stuck = True
            assert await probe("/live", private) == (503, "stuck")
            room.is_stuck = False
            room.lifecycle.phase = Phase.LEAVING
            assert await probe("/health", room.port) == await probe("/ready", private) == (503, "draining")
            assert await probe("/live", private) == (200, "live")
            drained = await room.ask("POST", "/drain", port=private)
            assert (drained.status, room.num_drains) == (202, 1)
            wrong: list[Reply] = [
                await room.ask("GET", "/drain", port=private),
                await room.ask("GET", "/x", port=private),
            ]
            assert [reply.status for reply in wrong] == [405, 404]
            assert wrong[0].error()["code"] == "method_not_allowed"
            metrics = await room.ask("GET", "/metrics", port=private)
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert b"trident_gateway_draining 1.0\n" in metrics.body
            # Nothing of it is public.
            for path in ("/metrics", "/ready", "/live", "/drain"):
                assert (await room.ask("GET", path)).status == 404

    run(test)


def test_application_serves_requests_one_after_another_on_one_connection() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            client = await room.connect()
            for number in range(5):
                client.send("POST", "/v1/x", b"%d" % number, JSON)
                assert (await client.reply()).body == b"%d" % number
            for number in range(5):  # pipelined
                client.send("POST", "/v1/x", b"%d" % number, JSON)
            assert [(await client.reply()).body for _ in range(5)] == [b"%d" % number for number in range(5)]
            client.close()

    run(test)


def test_application_refuses_a_body_that_does_not_come() -> None:
    settings = GatewaySettings(http=HttpLimits(receive_timeout_s=0.2))

    async def test() -> None:
        async with Room(echo, settings=settings) as room:
            with_length, chunked = await room.connect(), await room.connect()
            with_length.send("POST", "/v1/x", headers={**JSON, "content-length": "10"})
            with_length.writer.write(b"12345")
            chunked.send("POST", "/v1/x", headers={**JSON, "transfer-encoding": "chunked"})
            chunked.writer.write(b"5\r\n12345\r\n")
            for client in (with_length, chunked):
                reply = await client.reply()
                assert (reply.status, reply.error()["code"]) == (408, "request_timeout")
                assert reply.headers["connection"] == "close"
                assert await client.rest() == b""

    run(test)


def test_application_lets_nobody_wait_who_left_while_sending() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", headers={**JSON, "content-length": "10"})
            await asyncio.sleep(0)
            while not room.lifecycle.num_running:
                await asyncio.sleep(0.005)
            client.close()
            await room.quiet()
            (record,) = room.records
            assert (record.status, record.client_gone) == (499, "plain")

    run(test)


def test_application_takes_no_drain_of_a_web_page() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            for headers in (
                {"origin": "https://evil.example"},
                {"origin": "null"},
                {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
                {"sec-fetch-site": "same-site"},
            ):
                for method, path in (("POST", "/drain"), ("GET", "/metrics")):
                    reply = await room.ask(method, path, headers=headers, port=room.private_port)
                    assert (reply.status, reply.error()["code"]) == (403, "foreign_origin")
            assert room.num_drains == 0
            # As a browser sends it for an address that its user has typed.
            own = await room.ask("GET", "/metrics", headers={"sec-fetch-site": "none"}, port=room.private_port)
            assert own.status == 200

    run(test)


@pytest.mark.parametrize("has_keys", [True, False])
def test_application_without_keys_answers_to_names_of_this_machine_alone(tmp_path: Path, has_keys: bool) -> None:
    settings = GatewaySettings(keys_file=tmp_path / "keys.json") if has_keys else GatewaySettings()

    async def test() -> None:
        async with Room(echo, settings=settings) as room:
            for host, is_here in {
                "localhost": True, "LOCALHOST:8080": True, "127.0.0.1:1": True, "127.8.0.1": True, "[::1]": True,
                "[::1]:8080": True, "app.localhost:80": True, "localhost.": True, "evil.example": False,
                "evil.example:8080": False, "localhost.evil.example": False, "10.0.0.1": False,
                "[2001:db8::1]:80": False, "evillocalhost": False,
            }.items():  # fmt: skip
                client = await room.connect()
                head = f"POST /v1/x HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
                client.writer.write(head.encode() + b"content-length: 2\r\n\r\n{}")
                reply = await client.reply()
                client.close()
                if is_here or has_keys:
                    assert reply.status == 200, host
                else:
                    assert (reply.status, reply.error()["code"]) == (403, "foreign_origin"), host

    run(test)


def test_application_gives_every_answer_an_id_and_health_to_get_alone() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            asked = {"x-request-id": "mine"}
            private = room.private_port
            for reply in (
                await room.ask("GET", "/health", headers=asked),
                await room.ask("GET", "/ready", headers=asked, port=private),
                await room.ask("GET", "/metrics", headers=asked, port=private),
                await room.ask("GET", "/nothing", headers=asked, port=private),
                await room.ask("POST", "/drain", headers=asked, port=private),
            ):
                assert reply.headers["x-request-id"] == "mine"
            wrong = await room.ask("POST", "/health")
            assert (wrong.status, wrong.headers["allow"]) == (405, "GET")
            assert wrong.error()["code"] == "method_not_allowed"

    run(test)


def test_application_misses_no_cancellation_that_comes_with_the_end_of_the_body() -> None:
    """The request is stopped in the same round of the event loop in which its body is complete."""
    has_read = False

    @endpoint()
    async def read(request: HttpRequest, out: AnswerSink) -> None:
        nonlocal has_read
        await request.body()
        has_read = True
        await out.send_json(b"{}")

    async def test() -> None:
        nonlocal has_read
        loop = asyncio.get_running_loop()
        lifecycle = Lifecycle()
        sent: list[Any] = []
        arrives: asyncio.Future[Any] = loop.create_future()

        async def receive() -> Any:
            if arrives.done():
                await asyncio.Event().wait()
            return await arrives

        async def send(message: Any) -> None:
            sent.append(message)

        async with Room(read) as room:
            application = Application(
                [read],
                settings=GatewaySettings(),
                lifecycle=lifecycle,
                probes=Probes(lifecycle, lambda: True, lambda: False),
                metrics=room.metrics,
                log=room.records.append,
                tracer=NoTracer(),
                complain=room.complaints.append,
            )
            scope = {
                "path": "/v1/x", "method": "POST",
                "headers": [(b"content-type", b"application/json"), (b"host", b"localhost")],
                "state": {"opened_at": loop.time()},
            }  # fmt: skip
            for rounds in range(6):
                has_read, arrives = False, loop.create_future()
                task = loop.create_task(application(scope, receive, send))
                await until(lambda: lifecycle.num_running)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                arrives.set_result({"type": "http.request", "body": b"{}", "more_body": False})
                for _ in range(rounds):
                    await asyncio.sleep(0)
                was_there = has_read
                lifecycle.stop_all()
                await task
                assert has_read is was_there, f"read on after it was stopped, {rounds} rounds later"
            assert not room.complaints

    run(test)
