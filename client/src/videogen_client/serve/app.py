"""The facade as an application: the routes, errors in OpenAI's form, and what `/metrics` counts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import VideoGenError
from .body_limit import BodyLimit
from .figures import Figures
from .refusal import Refused, refusal_of
from .routes import Facade, router


def make_app(facade: Facade) -> FastAPI:
    """Serve it from one process: the videos are followed in it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        facade.videos.resume()
        yield
        await facade.videos.close()

    app = FastAPI(title="VideoGen", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.facade = facade
    app.add_middleware(BodyLimit)
    app.include_router(router)
    _handle_errors(app)
    _count(app, facade.figures)
    return app


def _handle_errors(app: FastAPI) -> None:
    def answer(refused: Refused) -> JSONResponse:
        headers = {"Retry-After": "5"} if refused.status == 503 else {}
        return JSONResponse(refused.body, refused.status, headers)

    @app.exception_handler(Refused)
    async def refuse(_: Request, failure: Refused) -> Response:
        return answer(failure)

    @app.exception_handler(VideoGenError)
    async def fail(_: Request, failure: VideoGenError) -> Response:
        return answer(refusal_of(failure))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, failure: HTTPException) -> Response:
        return answer(Refused(failure.status_code, str(failure.detail)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, failure: RequestValidationError) -> Response:
        first = failure.errors()[0]
        name = str(first["loc"][-1])
        return answer(Refused(400, f"{name}: {first['msg']}", param=name))


def _count(app: FastAPI, figures: Figures) -> None:
    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        response = await call_next(request)
        route = getattr(request.scope.get("route"), "path", "none")
        figures.saw(request.method, route, response.status_code, time.monotonic() - began)
        return response
