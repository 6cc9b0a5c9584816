"""The application: routes, and what they answer where something is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .. import __version__
from ..api import BUNDLED, BUNDLED_NAME
from ..core.schema import described
from ..processor import Processor
from .catalogue import catalogue
from .errors import Refused, Reply
from .guard import Guard, origins
from .host import Host
from .metrics import Metrics
from .plan import Plan, Planner
from .schema import Chat, Completion, Infill
from .service import IGNORED, Service
from .settings import Settings

_END = 10.0  # seconds that the engine has to end
_STATIC = Path(__file__).parent / "static"
_BODIES: dict[str, type[BaseModel]] = {
    "/v1/completions": Completion, "/v1/chat/completions": Chat, "/v1/infill": Infill,
}  # fmt: skip
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUS = {
    400: "something in the request is not accepted; param names it",
    401: "the API key is missing or not known",
    403: "the host is not this server's",
    404: "no such model or path",
    408: "the body did not arrive in time",
    413: "the body is too long",
    429: "the queue is full; Retry-After says when to try again",
    500: "the request failed while it was decoded",
    503: "the server is stopping",
    504: "the response did not end in time",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": what, "content": {"application/json": {"schema": _ERROR}}}
    for status, what in _STATUS.items()
}


def name_of(lm: Processor, settings: Settings) -> str:
    """What requests call the model."""
    if settings.model:
        return settings.model
    folder = lm.spec.tokenizer
    return BUNDLED_NAME if folder is None or Path(folder) == BUNDLED else Path(folder).name


def build(host: Host, settings: Settings) -> FastAPI:
    """The application; see :func:`unmask.server.app`. Its :class:`Service` is ``app.state.service``."""
    metrics, model = Metrics(host.pid), name_of(host.processor, settings)
    planner, service = Planner(host.processor, settings, model), Service(host, settings, model, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.worker.start()
        try:
            yield
        finally:
            service.draining = True
            service.worker.stop()
            await run_in_threadpool(host.join, _END)

    app = FastAPI(
        title="unmask", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=_ERRORS,
        description="Diffusion language models with OpenAI's endpoints.",
    )  # fmt: skip
    app.state.service, app.state.metrics = service, metrics
    _generation(app, planner, service)
    _about(app, planner, service, metrics)
    _failures(app)
    if (_STATIC / "index.html").exists():
        app.mount("/", StaticFiles(directory=_STATIC, html=True), name="page")
    if allowed := origins(settings):
        app.add_middleware(
            CORSMiddleware, allow_origins=allowed, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"], expose_headers=[IGNORED, "x-request-id"],
        )  # fmt: skip
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    return app


def _generation(app: FastAPI, planner: Planner, service: Service) -> None:
    """The endpoints that decode."""

    async def answer(make: Callable[[], Plan], http: Request) -> Response:
        return await service.answer(await run_in_threadpool(make), http)

    @app.post("/v1/completions", response_class=Reply, summary="Complete a text, or fill the gap before a suffix")
    async def completions(body: Completion, http: Request) -> Response:
        return await answer(lambda: planner.completion(body), http)

    @app.post("/v1/chat/completions", response_class=Reply, summary="Answer a conversation")
    async def chat(body: Chat, http: Request) -> Response:
        return await answer(lambda: planner.chat(body), http)

    @app.post("/v1/infill", response_class=Reply, summary="Fill the gaps of a text")
    async def infill(body: Infill, http: Request) -> Response:
        return await answer(lambda: planner.infill(body), http)


def _about(app: FastAPI, planner: Planner, service: Service, metrics: Metrics) -> None:
    """The endpoints that tell about model and server."""
    spec, model = planner.lm.spec, planner.model
    most = min(spec.context, planner.settings.max_tokens or spec.context)
    card = {
        "id": model, "object": "model", "created": 0, "owned_by": "unmask",
        "unmask": {
            "context": spec.context, "max_tokens": most, "gen_length": planner.gen_length,
            "policy": str(planner.policy), "cache": str(planner.cache),
            "chat": planner.lm.text is not None and planner.lm.text.chat,
        },
    }  # fmt: skip

    @app.get("/v1/models", response_class=Reply, summary="The model that is served")
    def models() -> Response:
        return Reply({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}", response_class=Reply, summary="One model")
    def one(name: str) -> Response:
        if name != model:
            raise Refused(
                404, f"the model {name!r:.100} is not served here; accepted is {model!r}", "model_not_found", "model"
            )
        return Reply(card)

    @app.get("/v1/policies", response_class=Reply, summary="Policies, with JSON schemas of their parameters")
    def policies() -> Response:
        return Reply(catalogue("policy", str(planner.policy)))

    @app.get("/v1/caches", response_class=Reply, summary="Caches, with JSON schemas of their parameters")
    def caches() -> Response:
        return Reply(catalogue("cache", str(planner.cache)))

    @app.get("/health", response_class=Reply, summary="Whether the engine runs")
    async def health() -> Response:
        return Reply({"status": "ok"}) if service.worker.alive else Reply({"status": "stopped"}, 503)

    @app.get("/ready", response_class=Reply, summary="Whether requests are accepted")
    async def ready() -> Response:
        fine = service.worker.alive and not service.draining
        return Reply({"status": "ready"}) if fine else Reply({"status": "stopping"}, 503)

    @app.get("/metrics", summary="Prometheus metrics")
    def counted() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _failures(app: FastAPI) -> None:
    """All that can go wrong, in OpenAI's shape."""

    @app.exception_handler(Refused)
    async def refused(http: Request, error: Refused) -> Response:
        http.scope["unmask.log"]["error"] = error.code
        return error.reply()

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> Response:
        found: list[Any] = [{**one, "loc": one["loc"][1:]} for one in error.errors() if one["loc"][:1] == ("body",)]
        model = _BODIES.get(http.url.path)
        if model is None or not found or found[0]["type"] == "json_invalid":
            return await refused(http, Refused(400, "the body is not JSON", "invalid_json"))
        if not found[0]["loc"]:
            return await refused(
                http, Refused(400, "the body must be a JSON object, sent as application/json", "invalid_json")
            )
        param = ".".join(str(part) for part in found[0]["loc"][: 1 + (found[0]["loc"][0] == "unmask")])
        message = described(model, error.body, found)
        return await refused(http, Refused(400, message, "invalid_value", param))

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        message = f"{http.method} {http.url.path!r:.100}: {error.detail}"
        code = codes.get(error.status_code, "bad_request")
        return await refused(http, Refused(error.status_code, message, code, headers=error.headers))
