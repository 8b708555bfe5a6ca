"""Many at once: threads, or processes, that stand at one line, start together and report what came of it."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ..errors import PerdureError
from ..protocol import Backend

T = TypeVar("T")
Move: TypeAlias = Callable[[Backend], Any]

PATIENCE = float(os.environ.get("PERDURE_PATIENCE", "60"))
"""Seconds after which something that does not come back counts as stuck; nothing is measured with it."""


class _Failure(NamedTuple):
    """What a member reports that ran into anything but an error of ours."""

    text: str


class Crew:
    """Some members that each have a handle on the same place.

    Attributes:
        size: How many there are.
    """

    size: int

    def at_once(self, moves: Sequence[Move]) -> list[Any]:
        """Let the first member make the first move and so on, all starting together.

        Args:
            moves: At most `size` functions of a backend; for processes they must be picklable.

        Returns:
            What each move returned. A `PerdureError` that it raised is returned, too.

        Raises:
            AssertionError: A move raised anything else, or did not end.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Send the members home."""
        raise NotImplementedError


class Threads(Crew):
    """Threads of this process, which are switched about every microsecond while they move.

    Args:
        backends: The handle of each member; may all be the same.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self.size = len(backends)
        self._line = threading.Barrier(self.size)
        self._answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._moves: list[queue.SimpleQueue[Move | None]] = [queue.SimpleQueue() for _ in backends]
        self._threads = [threading.Thread(target=self._serve, args=member, daemon=True) for member in enumerate(backends)]
        for thread in self._threads:
            thread.start()

    def _serve(self, number: int, backend: Backend) -> None:
        while (move := self._moves[number].get()) is not None:
            self._line.wait(PATIENCE)
            self._answers.put((number, _attempt(move, backend)))

    def at_once(self, moves: Sequence[Move]) -> list[Any]:
        answers: dict[int, Any] = {}
        with _restless():
            for number, inbox in enumerate(self._moves):
                inbox.put(moves[number] if number < len(moves) else _rest)
            for _ in range(self.size):
                try:
                    number, answer = self._answers.get(timeout=PATIENCE)
                except queue.Empty:
                    where = self._where(answers)
                    self._threads.clear()  # `close` need not wait for them once more
                    raise AssertionError(f"stuck after {PATIENCE} s: {where}") from None
                answers[number] = answer
        return _judge([answers[number] for number in range(len(moves))])

    def _where(self, answers: dict[int, Any]) -> str:
        frames = sys._current_frames()  # noqa: SLF001 - there is no other way to see where a thread hangs
        stuck = [thread.ident for number, thread in enumerate(self._threads) if number not in answers]
        return "\n".join("".join(traceback.format_stack(frames[ident])[-4:]) for ident in stuck if ident in frames)

    def close(self) -> None:
        for inbox in self._moves:
            inbox.put(None)
        _all_ended(self._threads)


class Processes(Crew):
    """Processes of this machine.

    Args:
        size: How many.
        method: `"spawn"` for fresh interpreters, `"fork"` for copies of this one.
        backend: The handle that forked members inherit and use; otherwise each opens its own, see `open`.
    """

    def __init__(self, size: int, method: str, backend: Backend | None = None) -> None:
        self.size = size
        self.alive = True
        # A spawned process runs the main script again as a module, in search of what was pickled by name; pytest's is guarded.
        context: Any = multiprocessing.get_context(method)
        # Kept: with the last reference here its semaphores are unlinked, and a child that starts slowly looks for them in vain.
        self._line = line = context.Barrier(size)
        self._pipes: list[multiprocessing.connection.Connection] = []
        self._members: list[Any] = []
        self._stacks = tempfile.NamedTemporaryFile(prefix="perdure-crew-")  # noqa: SIM115 - as long as this object
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks beside threads, which is the point here
            for _ in range(size):
                ours, theirs = context.Pipe()
                member = context.Process(target=_member, args=(theirs, line, self._stacks.name, backend), daemon=True)
                member.start()
                theirs.close()
                self._pipes.append(ours)
                self._members.append(member)

    def open(self, opener: Callable[[], Backend] | None) -> None:
        """Let each member open its own handle, and close the one it had; `None` only closes.

        Args:
            opener: Must be picklable. It meets the environment variables of this moment, credentials among them: the
                members may be older than these.
        """
        self._ask([("open", (opener, dict(os.environ)))] * self.size)

    def at_once(self, moves: Sequence[Move]) -> list[Any]:
        padded = [*moves, *[_rest] * (self.size - len(moves))]
        return self._ask([("move", move) for move in padded])[: len(moves)]

    def _ask(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        answers: dict[Any, Any] = {}
        try:
            for pipe, request in zip(self._pipes, requests, strict=True):
                pipe.send(request)
        except BrokenPipeError:
            self.kill()
            raise AssertionError("a process of the crew died before it was asked anything; see its standard error") from None
        while missing := [pipe for pipe in self._pipes if pipe not in answers]:
            ready: list[Any] = multiprocessing.connection.wait(missing, PATIENCE)
            if not ready:
                where = self._where(missing)
                self.kill()
                raise AssertionError(f"{len(missing)} of {self.size} processes are stuck after {PATIENCE} s{where}")
            for done in ready:
                try:
                    answers[done] = done.recv()
                except (EOFError, ConnectionResetError):
                    self.kill()
                    raise AssertionError("a process of the crew died") from None
        return _judge([answers[pipe] for pipe in self._pipes])

    def _where(self, missing: Sequence[Any]) -> str:
        """Ask the members that are stuck for their stacks, which a handler in C writes down whatever they hang in."""
        for number, member in enumerate(self._members):
            if self._pipes[number] in missing and hasattr(faulthandler, "register"):
                os.kill(member.pid, signal.SIGUSR1)
                time.sleep(0.5)  # one after the other
        return ":\n" + self._stacks.read().decode(errors="replace")

    def close(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(("end", None))
        try:
            _all_ended(self._members)
        finally:
            self.kill()

    def kill(self) -> None:
        """End them at once."""
        self.alive = False
        for member in self._members:
            if member.is_alive():
                member.kill()
            member.join(PATIENCE)
        for pipe in self._pipes:
            pipe.close()
        with contextlib.suppress(FileNotFoundError):  # somebody tidied up the folder for temporary files
            self._stacks.close()


def _all_ended(members: Sequence[Any]) -> None:
    """Wait for all of them together, and fail when one does not end: silence here would cost a minute a member, unseen."""
    deadline = time.monotonic() + PATIENCE
    for member in members:
        member.join(max(0.0, deadline - time.monotonic()))
    stuck = sum(member.is_alive() for member in members)
    assert not stuck, f"{stuck} of {len(members)} did not end within {PATIENCE} s"


_spawned: Processes | None = None


def spawned(size: int) -> Processes:
    """Return processes that were spawned by an earlier call, or new ones: starting an interpreter takes long.

    They end with this process.
    """
    global _spawned
    if _spawned is None or not _spawned.alive or _spawned.size != size:
        if _spawned is not None:
            _spawned.close()
        _spawned = Processes(size, "spawn")
    return _spawned


def within(patience: float, what: str, call: Callable[..., T], *args: Any, **options: Any) -> T:
    """Run `call` in a thread and return its result; fail when it does not come back.

    Args:
        patience: Seconds after which it counts as stuck.
        what: What is being tried, for the message.
        call: The function, and its arguments. What it raises is raised here.
    """
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((True, call(*args, **options)))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        done, result = results.get(timeout=patience)
    except queue.Empty:
        raise AssertionError(f"{what}: stuck after {patience} s") from None
    if not done:
        raise result
    answer: T = result
    return answer


@contextlib.contextmanager
def _restless() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _rest(backend: Backend) -> None:
    """The move of a member that only stands at the line."""


def _attempt(move: Move, backend: Backend) -> Any:
    try:
        return move(backend)
    except PerdureError as error:
        return error
    except BaseException:
        return _Failure(traceback.format_exc())


def _judge(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, _Failure):
            raise AssertionError(f"a member of the crew failed:\n{answer.text}")
    return answers


def _member(pipe: Any, line: Any, stacks: str, backend: Backend | None) -> None:
    """The life of a process of a crew."""
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, open(stacks, "ab"), all_threads=True)  # noqa: SIM115 - as long as we live
    handles = [] if backend is None else [backend]
    while True:
        try:
            request, what = pipe.recv()
        except (EOFError, OSError):
            return  # the parent is gone
        except Exception:  # such as a test class that cannot be imported by its name; the parent raises it
            pipe.send(_Failure(traceback.format_exc()))
            continue
        if request == "move":
            line.wait(PATIENCE)
            pipe.send(_attempt(what, handles[0]))
            continue
        try:
            while handles:
                handles.pop().close()
            opener, environment = what or (None, os.environ)
            os.environ.update(environment)
            if opener is not None:
                handles.append(opener())
            answer = None
        except Exception:  # whatever it is, the parent raises it with its traceback
            answer = _Failure(traceback.format_exc())
        if request == "end":
            return
        pipe.send(answer)
