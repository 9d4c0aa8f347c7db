"""The verb `serve`: serves a page on this machine that runs exported models in the browser."""

from __future__ import annotations

import threading
import webbrowser
from dataclasses import replace

from potstill.report.markdown import visible
from potstill.serve.models import ServedModel, check_pair
from potstill.serve.server import PageServer


def serve(model: str, compare: str | None = None, port: int = 8000, open: bool = False) -> str:
    """Serve a page that runs an exported model in the browser, until Ctrl-C. A second model can be compared with it.

    The page does fill-mask, text classification, question answering, and for sentence encoders the similarity of one
    text to several others. The models run in the browser. This server only sends it the files, and answers no other
    machine.

    Args:
        model: Folder that export wrote with --format onnx or onnx-int8.
        compare: Another such folder, such as the teacher's. The page runs both and compares their times.
        port: Port to listen on; 0 for any free one.
        open: Open the page in a browser.

    Returns:
        The message to print at the end.

    Raises:
        PotstillError: a folder holds no export that the page can run, the models do different tasks, or the port is
            taken.
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
            if open:  # in a thread, because the call to some browsers returns only when they are closed
                threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:  # the usual end, so it is not a failure
            print(flush=True)
    return "stopped"
