"""Loading by a name on the Hugging Face hub: if there is no network, at once from the hub's cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError

from potstill.errors import first_line

WAITS = (0, 1, 2)
"""Seconds to wait before each attempt to connect. A network that is away for longer is no network."""

_reached: dict[str, bool] = {}
"""Address of a hub → whether this process could connect to it when it tried last."""


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Let the libraries load something from the hub, or from its cache alone if no connection can be made.

    They would try to connect again and again, for half a minute and for each file. A network that is only slow has all
    of their time.

    Raises:
        ConnectionError: there is no connection, and the cache does not hold what was asked for.
    """
    reason = _unreachable()
    if reason is None:
        yield
        return
    # The switch of each library for work without a network. `datasets` reads its own, and is not always imported.
    switches = [module for name in ("datasets.config",) if (module := sys.modules.get(name)) is not None]
    switches.append(constants)
    before = [vars(module)["HF_HUB_OFFLINE"] for module in switches]
    for module in switches:
        vars(module)["HF_HUB_OFFLINE"] = True
    try:
        yield
    except Exception as error:
        missing = isinstance(error.__cause__, LocalEntryNotFoundError)  # as transformers reports it
        if missing or isinstance(error, ConnectionError | LocalEntryNotFoundError):
            raise ConnectionError(f"it is not in the cache of this machine, and {reason}") from error
        raise
    finally:
        for module, value in zip(switches, before, strict=True):
            vars(module)["HF_HUB_OFFLINE"] = value


def _unreachable() -> str | None:
    """Return why no connection to the hub can be made; None if one can be made, or could with more time."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    hub = constants.ENDPOINT
    if _reached.get(hub):
        return None
    failure = None
    for seconds in WAITS if hub not in _reached else WAITS[:1]:
        time.sleep(seconds)
        failure = _failure_to_connect(hub)
        _reached[hub] = failure is None
        if failure is None:
            return None
    return f"there is no connection to {hub}: {failure}"


def _failure_to_connect(hub: str) -> str | None:
    try:
        get_session().head(hub, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        # By its name, because the class is of httpx or httpx2, depending on the version of huggingface_hub. All other
        # errors, such as a timeout, are left to the libraries, which try again.
        if type(error).__name__ == "ConnectError":
            return first_line(error)
    return None
