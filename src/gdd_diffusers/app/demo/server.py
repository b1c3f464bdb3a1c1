"""Serve the page."""

import os
import signal
import tempfile
import threading
from pathlib import Path

from .jobs import Jobs
from .page import FOLDER, MAX_MEGABYTES, THEME, build_page


def launch(
    model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
):
    """
    Serve the page until Ctrl+C or SIGTERM, then delete all files of its visitors.

    Args:
        model (`str`, *optional*): A folder or a Hub repo to start with; the bundled weights if not given.
        device, dtype (`str`, defaults to `"auto"`): As for `gdd denoise`.
        host (`str`, defaults to `"127.0.0.1"`): Who is served: by default this machine only, with `"0.0.0.0"` the
            network, which gets `model` only.
        port (`int`, *optional*): The first free one from 7860 on if not given.
        open_browser (`bool`, defaults to `False`): Whether to show the page at once.

    Raises:
        `OSError`: If the model cannot be loaded, or the port is taken.
        `ValueError`: If there is no such device.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="gdd-demo-", ignore_cleanup_errors=True) as root:
        os.environ["GRADIO_TEMP_DIR"] = root
        one_model = host not in ("127.0.0.1", "localhost", "::1")
        page = build_page(Jobs(Path(root).resolve(), model, device, dtype, one_model))
        try:
            page.launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_MEGABYTES * 10**6,
                allowed_paths=[str(FOLDER)],
                theme=THEME,
                css_paths=FOLDER / "page.css",
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
            )
        except OSError as error:
            if "empty port" not in str(error):
                raise
            raise OSError(f"port {port or 'after port from 7860 on'} of {host} is taken; try another one.") from None
        print(f"The page is at {page.local_url} and ends with Ctrl+C.", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close()
