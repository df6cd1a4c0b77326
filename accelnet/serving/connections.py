"""Connections that end by themselves where a client is slow, silent, or does not read its answer."""

from typing import Any

from accelnet.serving.answering import written
from accelnet.serving.limits import Limits

_HEAD_BYTES = 1 << 16  # of a request's first line and headers, and no more than one read beyond
_READ_BYTES = 1 << 16  # that a client reads of a large answer at least, in the time that it has


class _Whole:
    """Write the head of an answer together with its body: one call of the system, and the client wakes once.

    Args:
        transport: The transport of a connection.
    """

    def __init__(self, transport: Any) -> None:
        self._transport, self._head = transport, b""

    def write(self, data: bytes) -> None:
        """Write, or keep what is the head of an answer."""
        if data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and not data.startswith(b"HTTP/1.1 100"):
            self._head += data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        """Write what is kept: the answer has no body."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Close the connection after what is written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def connection_type(limits: Limits) -> Any:
    """Return uvicorn's protocol of a connection, with `check`, to be called every second with the loop's time.

    uvicorn has a time limit for connections that are idle between requests, and none while a client sends or reads.

    Args:
        limits: Limits of the server.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Connection(HttpToolsProtocol):
        _began: float | None = None  # when it was made, or the request began that is not complete yet
        _in_head, _head_bytes, _messages = True, 0, 0
        _unread, _stood = 0, 0.0  # bytes of the answer that the client had not read, and since when there are as many

        def connection_made(self, transport: Any) -> None:
            self._whole: Any = _Whole(transport)
            super().connection_made(self._whole)
            self._began = self.loop.time()

        def data_received(self, data: bytes) -> None:
            if self._head_bytes > _HEAD_BYTES:
                self._end("431 Request Header Fields Too Large", f"the head has more than {_HEAD_BYTES:,} bytes")
                return
            before = self._in_head, self._messages
            super().data_received(data)
            if before == (True, self._messages) and self._in_head:
                self._head_bytes += len(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._began = self.loop.time()

        def on_headers_complete(self) -> None:
            self._in_head, self._head_bytes = False, 0
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head, self._messages, self._began = True, self._messages + 1, None

        def on_response_complete(self) -> None:
            self._whole.flush()
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            self._end("400 Bad Request", "this is no request of HTTP/1.1")

        def _end(self, status: str, message: str) -> None:
            body = written({"error": message})
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n".encode()
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
            self.transport.close()

        def check(self, now: float) -> None:
            """End the connection if the client takes too long."""
            # A second more than the application allows, whose answer says why.
            late = self._began is not None and now - self._began > limits.seconds + 1
            unread = self.transport.get_write_buffer_size()
            if not unread or unread < self._unread - _READ_BYTES or not self._unread:
                self._unread, self._stood = unread, now
            if late or (unread and now - self._stood > limits.seconds):
                self.transport.abort()

    return Connection
