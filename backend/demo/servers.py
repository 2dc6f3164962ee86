"""The child processes of `make run`, Label Studio, backend and worker: their environment, how they start and end."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import requests

from backend.errors import DemoError
from semsam_model.checkpoints.header import RELEASED, SUFFIX
from semsam_model.files import atomic_write

HOST = "127.0.0.1"

# What Label Studio refuses to call by default, so that a project cannot be used to reach into a private network.
_RESERVED_SUBNETS = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("224.0.0.0/4", "233.252.0.0/24", "240.0.0.0/4", "255.255.255.255/32"),
    *("::/128", "::1/128", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64"),
    *("2001::/32", "2001:20::/28", "2001:db8::/32", "2002::/16", "fc00::/7", "fe80::/10", "ff00::/8"),
]


@dataclass(frozen=True)
class Credentials:
    """The one Label Studio user of the demo. `token` is its API token, 40 hexadecimal digits.

    `webhook_secret` is a header of Label Studio's webhooks, by which the backend knows them.
    """

    email: str
    password: str = field(repr=False)
    token: str = field(repr=False)
    webhook_secret: str = field(default="", repr=False)

    @classmethod
    def load_or_create(cls, path: Path) -> Credentials:
        """Those in `path`, or new random ones, written there readable by the owner alone. Raises DemoError."""
        known = None
        if path.exists():
            try:
                known = cls(**json.loads(path.read_text()))
            except (ValueError, TypeError):
                raise DemoError(
                    f"{path} is not a credentials file: restore it, or move {path.parent} away to start afresh"
                ) from None
            if known.webhook_secret:
                return known
        created = known or cls("annotator@example.com", secrets.token_urlsafe(9), secrets.token_hex(20))
        created = replace(created, webhook_secret=secrets.token_urlsafe(24))
        with atomic_write(path, mode=0o600) as temporary:
            temporary.write_text(json.dumps(asdict(created), indent=1))
        return created


def banned_subnets(allowed: str) -> list[str]:
    """Every reserved subnet without the network `allowed` (CIDR, IPv4): what Label Studio goes on refusing to call."""
    hole = ipaddress.IPv4Network(allowed)
    banned: list[str] = []
    for text in _RESERVED_SUBNETS:
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv4Network) and hole.subnet_of(network):
            banned += map(str, sorted(network.address_exclude(hole)))
        else:
            banned.append(text)
    return banned


def label_studio_environment(url: str, credentials: Credentials, allowed: str = f"{HOST}/32") -> dict[str, str]:
    """Environment of a Label Studio at `url` with this user, which may call public addresses and `allowed` (CIDR)."""
    return {
        "LABEL_STUDIO_HOST": url,
        "LABEL_STUDIO_USERNAME": credentials.email,
        "LABEL_STUDIO_PASSWORD": credentials.password,
        "LABEL_STUDIO_USER_TOKEN": credentials.token,
        # read only while the organisation is created, that is at the first start
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        # nothing leaves the machine
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        # its protection against calls into private networks stays on; the list gets one hole, for the backend
        "LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS": "false",
        "LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS": ",".join(banned_subnets(allowed)),
    }


def check_port(port: int, variable: str) -> None:
    """Raises DemoError, naming the make `variable` that changes it, when nothing can listen on `port`.

    Label Studio itself would silently take the next port instead.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DemoError(
                f"port {port} cannot be used ({error.strerror}): choose another with `make run {variable}=...`"
            ) from None


class Server:
    """A child process in a process group of its own, with its output in the file `log`; most serve HTTP."""

    def __init__(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], health: str, log: Path
    ) -> None:
        self.name = name
        self.log = log
        self._health = health
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check_running(self) -> None:
        """Raises DemoError when the process has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"{self.name} stopped with exit code {code}: its last words are in {self.log}")

    def wait_until_healthy(self, seconds: float) -> None:
        """Returns once the health address answers 200; DemoError when the process ends or `seconds` pass first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check_running()
            with contextlib.suppress(requests.RequestException):
                if requests.get(self._health, timeout=2).status_code == 200:
                    return
            time.sleep(0.2)
        raise DemoError(f"{self.name} did not answer at {self._health} within {seconds:.0f} s: see {self.log}")

    def stop(self) -> None:
        """Ends the whole process group: asks first, insists after ten seconds."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def label_studio_program(root: Path) -> Path:
    """The `label-studio` that `make` installs in the repository `root`. Raises DemoError when it is missing."""
    program = root / ".venv-ls" / "bin" / "label-studio"
    if not program.exists():
        raise DemoError(f"{program} is missing: start the demo with `make run`, which installs it")
    return program


def start_label_studio(program: Path, port: int, data: Path, credentials: Credentials, log: Path) -> Server:
    """Label Studio on 127.0.0.1:`port` with its database and uploads in `data`."""
    url = f"http://{HOST}:{port}"
    data.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [program, "start", "--no-browser", "--internal-host", HOST]
    command += ["--port", str(port), "--data-dir", data]
    return Server("Label Studio", command, label_studio_environment(url, credentials), f"{url}/health", log)


def start_backend(port: int, label_studio_url: str, credentials: Credentials, data: Path, log: Path) -> Server:
    """`semsam serve` on 127.0.0.1:`port`, with the token of Label Studio's user in its environment."""
    command: list[str | Path] = [_semsam(), "serve", "--host", HOST, "--port", str(port)]
    environment = _backend_environment(label_studio_url, credentials, data)
    return Server("The backend", command, environment, f"http://{HOST}:{port}/health", log)


def start_worker(label_studio_url: str, credentials: Credentials, data: Path, log: Path) -> Server:
    """`semsam worker` beside the backend. It serves no HTTP, so do not wait until it is healthy."""
    return Server(
        "The worker", [_semsam(), "worker"], _backend_environment(label_studio_url, credentials, data), "", log
    )


def fetch_weights(model: str, data: Path) -> None:
    """The published weights of a model into the data folder, unless they are there; with a bar in the terminal.

    Does nothing for models whose weights are not published. Raises DemoError; the next call goes on where it ended.
    """
    if model not in RELEASED or (data / "weights" / f"{model}{SUFFIX}").is_file():
        return
    command = [str(_semsam()), "weights", "fetch", model, "--out", str(data / "weights")]
    if subprocess.run(command, check=False).returncode:
        raise DemoError(f"model {model} has no weights yet, see above; the same command again goes on where it ended")


def _semsam() -> Path:
    return Path(sys.executable).with_name("semsam")


def _backend_environment(label_studio_url: str, credentials: Credentials, data: Path) -> dict[str, str]:
    return {
        "LABEL_STUDIO_URL": label_studio_url,
        "LABEL_STUDIO_API_KEY": credentials.token,
        "SEMSAM_WEBHOOK_SECRET": credentials.webhook_secret,
        "SEMSAM_DATA_DIR": str(data),
    }


def _die_with_parent() -> None:
    """In a child on Linux: SIGTERM when the parent is killed, so that no server is left behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
