"""A TCP proxy that cuts or damages the answers of chosen connections. Understands no protocol."""

import contextlib
import socket
import threading
from collections.abc import Mapping
from types import TracebackType


class CuttingProxy:
    """Connection number i passes `budgets[i]` bytes of its answer; later ones pass everything.

    In the answers of connections listed in `flips`, one bit of byte `flips[i]` is turned over.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        budgets: list[int],
        *,
        flips: Mapping[int, int] | None = None,
    ) -> None:
        self.connections = 0
        self._flips = flips or {}
        self._upstream = upstream
        self._budgets = budgets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "CuttingProxy":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number, self.connections = self.connections, self.connections + 1
            budget = self._budgets[number] if number < len(self._budgets) else 1 << 60
            flip = self._flips.get(number, -1)
            threading.Thread(target=self._serve, args=(client, budget, flip), daemon=True).start()

    def _serve(self, client: socket.socket, budget: int, flip: int) -> None:
        with client, socket.create_connection(self._upstream) as server:
            threading.Thread(target=_pump, args=(client, server, 1 << 60), daemon=True).start()
            _pump(server, client, budget, flip)


def _pump(source: socket.socket, target: socket.socket, budget: int, flip: int = -1) -> None:
    passed = 0
    with contextlib.suppress(OSError):
        while passed < budget and (chunk := source.recv(min(budget - passed, 1 << 16))):
            if passed <= flip < passed + len(chunk):
                at = flip - passed
                chunk = chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]
            target.sendall(chunk)
            passed += len(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
