"""Requests and answers of HTTP, between the server's protocol (ASGI) and functions of a request."""

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from accelnet.serving.answering import written
from accelnet.serving.counts import Counts
from accelnet.serving.limits import Limits, Refused
from accelnet.terminal import say

# Bodies of requests that are being read or waiting, in units of the largest one.
_MOST_BODIES = 16
JSON, HTML, TEXT = "application/json", "text/html; charset=utf-8", "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """Hold a request.

    Attributes:
        headers: Headers by name, in small letters.
        body: Body.
    """

    headers: Mapping[bytes, bytes]
    body: bytes


@dataclass(frozen=True)
class Response:
    """Hold an answer.

    Attributes:
        body: Body.
        kind: Content type.
        status: Status code.
        headers: Further headers.
    """

    body: bytes
    kind: str = JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]
Receive = Callable[[], Awaitable[Any]]


class _GoneError(Exception):
    """Report that the client has gone."""


class Application:
    """Answer requests by the functions of their routes; every error is one JSON object with one message.

    Args:
        routes: Function of a request by method and path.
        limits: Limits of the server.
        counts: What is counted.
    """

    def __init__(self, routes: Mapping[tuple[str, str], Handler], limits: Limits, counts: Counts) -> None:
        self._routes, self._limits, self._counts = routes, limits, counts
        self._methods: dict[str, list[str]] = {}
        for method, path in routes:
            self._methods.setdefault(path, []).append(method)
        self._held_bytes = 0

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        began = time.perf_counter()
        held: list[bytes] = []
        try:
            answer = await self._answer(scope, receive, held)
        except _GoneError:
            self._counts.request(self._route(scope), 499, None)
            return
        except Refused as error:
            answer = Response(written({"error": str(error)}), status=error.status, headers=error.headers)
        except Exception as error:  # noqa: BLE001, one request must not end the server
            say(f"a request failed:\n{''.join(traceback.format_exception(error))}")
            answer = Response(written({"error": "the prediction failed: the server's output tells why"}), status=500)
        finally:
            self._held_bytes -= sum(map(len, held))
        predicted = scope["method"] == "POST" and answer.status == 200
        self._counts.request(self._route(scope), answer.status, time.perf_counter() - began if predicted else None)
        headers = [(b"content-type", answer.kind.encode()), (b"content-length", b"%d" % len(answer.body))]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _route(self, scope: Mapping[str, Any]) -> str:
        return scope["path"] if scope["path"] in self._methods else "other"

    async def _answer(self, scope: Mapping[str, Any], receive: Receive, held: list[bytes]) -> Response:
        path = scope["path"]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        handler = self._routes.get((method, path))
        if handler is None:
            if methods := self._methods.get(path):
                allowed = ", ".join(methods)
                raise Refused(405, f"{path} takes {allowed}, not {method}", {"allow": allowed})
            raise Refused(404, f"there is no {path[:80]!r}: /docs tells what there is")
        headers = dict(scope["headers"])
        body = b"" if method == "GET" else await self._body(headers, receive, held)
        return await handler(Request(headers, body))

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, held: list[bytes]) -> bytes:
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refused(415, "the body is compressed, expected it as it is: leave out content-encoding")
        self._admit(int(headers.get(b"content-length", b"0")), 0)
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limits.seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    self._admit(size, len(part))
                    held.append(part)
                    self._held_bytes += len(part)
        except TimeoutError:
            told = f"the request was not complete after {self._limits.seconds:g} seconds: send it again"
            raise Refused(408, told, {"connection": "close"}) from None
        return held[0] if len(held) == 1 else b"".join(held)

    def _admit(self, size: int, more: int) -> None:
        """Refuse a body that is too large, or more bytes than the server may hold for all of its clients."""
        most = self._limits.body_bytes
        if size > most:
            raise Refused(413, f"the body has more than {most:,} bytes: send rows in parts, or pictures made smaller")
        if self._held_bytes + more > _MOST_BODIES * most:
            raise Refused(503, "too many large requests at once: try again in a moment", {"retry-after": "1"})
