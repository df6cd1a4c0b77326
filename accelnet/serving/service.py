"""The routes of a server: predictions, the Open Inference Protocol, health, counts, pages."""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from accelnet.artifact.model import Model
from accelnet.artifact.prediction import Prediction
from accelnet.artifact.schema import encode
from accelnet.serving.answering import told, written
from accelnet.serving.batching import Batches
from accelnet.serving.bodies import Bodies, parse
from accelnet.serving.counts import Counts
from accelnet.serving.http import HTML, TEXT, Application, Handler, Request, Response
from accelnet.serving.limits import Limits, Refused, refusing
from accelnet.serving.open_inference import described, read_tensors, told_tensors
from accelnet.serving.openapi import documented
from accelnet.serving.pages import documentation, trying
from accelnet.serving.sizes import Encoded, Sizes
from accelnet.serving.tables import TableRows, Tables

# Larger bodies are read in threads: pictures take milliseconds to decode.
_SMALL = 1 << 15


class Service:
    """Serve one model.

    Args:
        model: The model.
        limits: Limits of the server.

    Attributes:
        name: Name of the model in paths.
        application: The ASGI application.
        ready: Whether all shapes are compiled.
    """

    def __init__(self, model: Model, limits: Limits) -> None:
        self._model, self._bodies, self._sizes = model, Bodies(model), Sizes(model, limits)
        self.name = re.sub(r"[^A-Za-z0-9._-]+", "-", model.config["experiment"]).strip("-") or "model"
        self.ready = False
        counts = Counts(lambda: self._batches.waiting_rows)
        tables = Tables(self._sizes, self._encode)
        self._counts, self._batches = counts, Batches(tables, limits, counts.batch)
        self._readers = ThreadPoolExecutor(2, "accelnet-readers")
        self.application = Application(self._routes(), limits, counts)

    async def compile(self, told: Callable[[int, int], object], stops: Callable[[], bool]) -> None:
        """Compile all shapes, in the thread that predicts, and be ready.

        Args:
            told: Function that is called before each with how many are done, and how many there are.
            stops: Function that says whether the server is to end, so that there is no need to go on.
        """
        await asyncio.get_running_loop().run_in_executor(self._batches.thread, self._sizes.compile, told, stops)
        self.ready = not stops()

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._batches.thread.shutdown(cancel_futures=True)

    def _routes(self) -> dict[tuple[str, str], Handler]:
        v2 = f"/v2/models/{self.name}"
        facts = described(self._model, self.name)
        pages = trying(self._model), documentation(self._model, self.name)
        alive, made_by = written({"live": True}), {"name": "accelnet", "version": metadata.version("accelnet")}
        fixed = {
            "/health": Response(alive),
            "/v2/health/live": Response(alive),
            "/": Response(pages[0], HTML),
            "/docs": Response(pages[1], HTML),
            "/openapi.json": Response(written(documented(self._model, self.name))),
            "/v2": Response(written({**made_by, "extensions": []})),
            v2: Response(written(facts)),
        }
        ready = self._answer_ready
        return {
            **{("GET", path): _constant(answer) for path, answer in fixed.items()},
            **{("GET", path): ready for path in ("/ready", "/v2/health/ready", f"{v2}/ready")},
            ("GET", "/metrics"): self._answer_metrics,
            ("POST", "/predict"): self._answer_predict,
            ("POST", f"{v2}/infer"): self._answer_infer,
        }

    async def _answer_ready(self, _: Request) -> Response:
        self._refuse_unless_ready()
        return Response(written({"ready": True}))

    async def _answer_metrics(self, _: Request) -> Response:
        return Response(self._counts.text(self.ready).encode(), TEXT)

    async def _answer_predict(self, request: Request) -> Response:
        self._refuse_unless_ready()
        kind = request.headers.get(b"content-type", b"").decode("latin-1")

        def read() -> tuple[TableRows | Encoded, bool]:
            inputs, alone = self._bodies.read(request.body, kind)
            if isinstance(inputs, TableRows) and len(inputs) <= self._sizes.rows[-1]:
                return inputs, alone
            return self._padded(lambda: self._encode(inputs.rows) if isinstance(inputs, TableRows) else inputs), alone

        waiting, alone = await self._read(request, read)
        rows = told(await self._predicted(waiting))
        return Response(written(rows[0] if alone else {"predictions": rows}))

    async def _answer_infer(self, request: Request) -> Response:
        self._refuse_unless_ready()
        if b"inference-header-content-length" in request.headers:
            raise Refused(400, "the tensors are binary, expected JSON: leave out inference-header-content-length")

        def read() -> tuple[Encoded, Any]:
            asked = parse(request.body)
            return self._padded(lambda: read_tensors(self._model, asked)), asked

        encoded, asked = await self._read(request, read)
        prediction = await self._predicted(encoded)
        with refusing():
            return Response(written(told_tensors(prediction, asked, self.name)))

    def _refuse_unless_ready(self) -> None:
        if not self.ready:
            raise Refused(503, "the model is still being compiled: /ready tells when it is done", {"retry-after": "1"})

    def _encode(self, rows: Any) -> Any:
        return encode(rows, self._model.schema)

    async def _read(self, request: Request, read: Callable[[], Any]) -> Any:
        if len(request.body) < _SMALL:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    def _padded(self, inputs: Callable[[], Any]) -> Encoded:
        with refusing():
            return self._sizes.padded(inputs())

    async def _predicted(self, rows: TableRows | Encoded) -> Prediction:
        values = await self._batches.answer(rows)
        return Prediction(self._model.schema["kind"], range(len(rows)), values, self._model.names)


def _constant(answer: Response) -> Handler:
    async def give(_: Request) -> Response:
        return answer

    return give
