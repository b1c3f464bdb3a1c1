"""Serve the page, and refuse requests that come from other sites."""

import asyncio
import errno
import functools
import os
import signal
import socket
import tempfile
import traceback
import webbrowser
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

from .jobs import Jobs
from .page import FOLDER, MAX_MEGABYTES, THEME, build_page


LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANSWER_DELAY = 0.05  # seconds


def launch(
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    allow_folders: bool = False,
):
    """
    Serve the page until Ctrl+C or SIGTERM, then delete all files of its visitors.

    The arguments are the options of `gdd demo`. With a `host` other than this machine, such as `"0.0.0.0"` for the
    whole network, visitors cannot load another model.

    Raises:
        `OSError`: If the model cannot be loaded, or the port is taken.
        `ValueError`: If there is no such device.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gdd-demo-", ignore_cleanup_errors=True) as root:
        os.environ["GRADIO_TEMP_DIR"] = root
        jobs = Jobs(Path(root).resolve(), model, device, dtype, host not in LOOPBACK, allow_folders)
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            quiet(build_page(jobs)),
            "/",
            max_file_size=MAX_MEGABYTES * 10**6,
            theme=THEME,
            css_paths=FOLDER / "page.css",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
        )
        with listen(host, port) as listener:
            name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
            url = f"http://{name}:{listener.getsockname()[1]}"
            print(f"The page is at {url} and ends with Ctrl+C.", flush=True)
            if open_browser:
                webbrowser.open(url)
            app = OwnRequestsOnly(LateAnswers(app), host)
            config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
            with suppress(KeyboardInterrupt):
                uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int | None) -> socket.socket:
    for candidate in [port] if port else range(7860, 7960):
        try:
            return socket.create_server((host, candidate), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                reason = (error.strerror or str(error)).partition(" (")[0]
                raise OSError(f"the page cannot be served at port {candidate} of {host}: {reason}.") from None
    raise OSError(f"{f'port {port}' if port else 'every port from 7860 on'} of {host} is taken; try another one.")


def quiet(page: gr.Blocks) -> gr.Blocks:
    """Answer what the page itself would not send in a sentence, where Gradio prints its own code to the terminal."""
    process_api = page.process_api

    @functools.wraps(process_api)
    async def process(*args, **kwargs):
        try:
            return await process_api(*args, **kwargs)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[1:]
            if any(Path(frame.filename).is_relative_to(FOLDER) for frame in frames):
                raise  # the page's own, which says whether to print it
            known = type(error) is gr.Error  # such as a number above the largest that a control takes
            sentence = error.message if known else "The page does not send such requests."
            raise gr.Error(sentence, print_exception=False) from None

    page.process_api = process  # type: ignore[method-assign]
    return page


class LateAnswers:
    """
    Answer the page's events a moment later.

    The results of all events of a page come in one stream, whose end Gradio announces there when no event is left. A
    browser that takes the answer to its next event before it reads that announcement waits for a result on a stream
    that has ended.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_late(message):
            if message["type"] == "http.response.start":
                await asyncio.sleep(ANSWER_DELAY)
            await send(message)

        is_event = scope["type"] == "http" and scope["path"].endswith("/queue/join")
        await self.app(scope, receive, send_late if is_event else send)


class OwnRequestsOnly:
    """
    Refuse requests that another site has a visitor's browser send.

    A site can point its own name at this machine (DNS rebinding), so the `Host` must be a name of this server. It can
    also send forms and uploads without asking first, so the `Origin`, if there is one, must be that same host.
    """

    def __init__(self, app, host: str):
        self.app = app
        self.is_public = host not in LOOPBACK
        self.names = {*LOOPBACK, host.lower()}
        if self.is_public:
            name = socket.gethostname().lower()
            self.names |= {name, f"{name}.local", socket.getfqdn().lower(), os.environ.get("SPACE_HOST", name).lower()}

    def is_own(self, host: str, origins: list[str]) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self.names:
                ip_address(name)  # unlike a name, an address cannot be pointed elsewhere
                if not self.is_public:
                    return False
            return all(urlsplit(origin).netloc.lower() == host.lower() for origin in origins)
        except ValueError:
            return False

    async def __call__(self, scope, receive, send):
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if not self.is_own(headers.get("host", ""), headers.getlist("origin")):
                refusal = PlainTextResponse("This page answers only to its own address.\n", status_code=403)
                return await refusal(scope, receive, send)
        await self.app(scope, receive, send)
