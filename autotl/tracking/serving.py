"""The process that serves the MLflow UI for `autotl ui`."""

import errno
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil

from autotl.errors import StudyError
from autotl.files import owner_only
from autotl.tracking import shipping

LOCAL = "127.0.0.1"
STARTS_WITHIN = 120.0
"""Seconds."""
_REASON = re.compile(r"(?:Error|Exception|ERROR(?: [\w.]+)?): +(.+)")
"""The reason in a line of a log or at the end of a traceback."""


class Server:
    """A process that serves the pages of one MLflow server or store, on an address and a port of this machine."""

    def __init__(self, uri: str, workspace: Path, host: str, port: int, allowed_hosts: Sequence[str]) -> None:
        """`allowed_hosts`: further host names under which browsers reach the pages.

        Raises: StudyError if no process can listen there.
        """
        self.uri, self.workspace, self.host, self.port = uri, workspace, host, port
        self.allowed_hosts = allowed_hosts
        self._address = _listening(host, port)
        self._log = workspace / ".mlflow-server.log"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the pages."""
        return self._address.is_loopback

    @property
    def here(self) -> str:
        """The start of their URL on this machine."""
        loopback = "::1" if self._address.version == 6 else LOCAL
        return self._begin(loopback if self._address.is_unspecified else self.host)

    @property
    def elsewhere(self) -> str:
        """The start of their URL on other machines."""
        return self._begin(socket.gethostname() if self._address.is_unspecified else self.host)

    def _begin(self, name: str) -> str:
        return f"http://{_in_url(name)}:{self.port}"

    @contextmanager
    def served(self) -> Iterator["subprocess.Popen[bytes]"]:
        """Serve the pages while the context is open.

        Raises: StudyError if the process ends before it answers, or does not answer.
        """
        words = ["server", "--host", self.host, "--port", str(self.port), "--workers", "1"]
        self.workspace.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        with open(self._log, "w", opener=owner_only) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words],
                cwd=self.workspace,
                env=self._environment(),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        try:
            self._wait(process)
            yield process
        finally:
            process.terminate()
            process.wait()

    def ended(self) -> StudyError:
        """Why the process ended: the last reason in its output."""
        printed = self._log.read_text(errors="replace")
        *_, reason = ["no reason given.", *_REASON.findall(printed)]
        return StudyError(f"MLflow's server ended: {shipping.why(reason)} Its output is in {self._log}")

    def _wait(self, process: "subprocess.Popen[bytes]") -> None:
        straight = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        began = time.monotonic()
        while time.monotonic() - began < STARTS_WITHIN:
            if process.poll() is not None:
                raise self.ended()
            try:
                straight.open(f"{self.here}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise StudyError(f"MLflow's server has not answered within {STARTS_WITHIN:.0f} s. Its output is in {self._log}")

    def _environment(self) -> dict[str, str]:
        checks = self._host_checks()
        return {
            **({**os.environ, **checks} if self.allowed_hosts else {**checks, **os.environ}),
            **shipping.SAFE_PATH,
            "UVICORN_APP_DIR": os.devnull,  # else it puts its working folder first, despite PYTHONSAFEPATH
            "MLFLOW_BACKEND_STORE_URI": self.uri,  # not an argument, where everybody could read its password
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def _host_checks(self) -> dict[str, str]:
        """MLflow's settings for the allowed host names; empty, for its defaults, if only this machine is served.

        MLflow rejects requests from its own pages as cross-origin unless the page's origin is allowed, too.
        """
        if self.is_local and not self.allowed_hosts:
            return {}
        names = ["localhost", LOCAL, "::1", *([] if self.is_local else _own_names()), *self.allowed_hosts]
        # On any port, since a container's port may differ outside. In a pattern `[[]` matches a literal `[`.
        hosts = [host for name in map(_in_url, names) for host in (name, f"{name.replace('[', '[[]')}:*")]
        origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
        return {
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(origins),
        }


def _listening(host: str, port: int) -> IPv4Address | IPv6Address:
    """The address of a host name, after checking that a process can listen on it.

    Raises: StudyError.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StudyError(f"Port {port} is in use. Use another one: --port {port + 1}") from None
        what = f"MLflow cannot listen on port {port} of {host}: {error.strerror}."
        raise StudyError(f"{what} Use an address of this machine, or 0.0.0.0 for all: --host ADDRESS") from None
    return ip_address(str(address[0]).partition("%")[0])


def _own_names() -> list[str]:
    """The names and addresses of this machine."""
    found = [socket.gethostname(), socket.getfqdn()]
    for addresses in psutil.net_if_addrs().values():
        internet = (each.address for each in addresses if each.family in (socket.AF_INET, socket.AF_INET6))
        found += [address.partition("%")[0] for address in internet]
    return list(dict.fromkeys(found))


def _in_url(name: str) -> str:
    """A host's name or address, written as in a URL."""
    return f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name
