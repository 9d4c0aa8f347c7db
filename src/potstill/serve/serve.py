"""The verb `serve`: exported models in, a page on this machine that runs them in the browser."""

from __future__ import annotations

import threading
import webbrowser
from dataclasses import replace

from potstill.report.markdown import visible
from potstill.serve.models import ServedModel, check_pair
from potstill.serve.server import PageServer


def serve(model: str, compare: str | None = None, port: int = 8000, open: bool = False) -> str:
    """Serve a page that runs an exported model in the browser, beside another if wanted, until Ctrl-C.

    Fill-mask, text classification and question answering. The models run in the browser; this only hands it the files,
    and answers no other machine.

    Args:
        model: Folder that export wrote with --format onnx or onnx-int8.
        compare: Another such folder, such as the teacher's: the page runs both and compares their times.
        port: Port to listen on; 0 for any that is free.
        open: Open the page in a browser.

    Returns:
        What to say once it has ended.

    Raises:
        PotstillError: a folder holds no export that the page can run, the two do different tasks, or the port is taken.
    """
    models = [ServedModel.open(model, "--model")]
    if compare is not None:
        models.append(ServedModel.open(compare, "--compare"))
        check_pair(*models)
        if models[0].name == models[1].name:
            models = [replace(one, name=str(one.folder)) for one in models]
    with PageServer(models, port) as server:
        names = " beside ".join(visible(one.name) for one in models)
        try:
            print(f"{names} on {server.url} (Ctrl-C ends it)", flush=True)
            if open:  # some browsers block whoever opens them
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:  # the usual way to end it, so no failure
            print(flush=True)
    return "stopped"
