"""A disk as POSIX promises it, and no better: what of a recorded run may be there after the power was cut.

Data written to a file is safe after an fsync of that file, a name after an fsync of its folder, all of both after a syncfs, and
nothing else is. Whatever was not synced may be there or not, in any combination: names independently of each other, a write as
a whole, not at all, or in some of its sectors. Real file systems keep more (they journal names in order, and some sync a new
file's name along with its data); who is safe here is safe there.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

SECTOR = 512


class Call(NamedTuple):
    """One system call that succeeded: its name, its strings, its other arguments, and what it returned."""

    name: str
    strings: list[bytes]
    words: list[str]
    result: int


_AT = ("renameat", "linkat", "symlinkat", "unlinkat", "mkdirat")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)(?: .*)?")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')


def calls(record: Path) -> Iterator[Call]:
    """Read what `strace -f -xx -s 9999999 -o record` wrote about a process without threads."""
    process = ""
    with record.open() as trace:
        for line in trace:
            found = _LINE.fullmatch(line.rstrip())
            if found is None:
                assert re.match(r"\d+ +(\+\+\+|---)|.*= \?$", line) or "<unfinished" in line, f"not understood: {line[:200]}"
                continue
            who, name, arguments, result = found.groups()
            process = process or who
            assert who == process, "threads and children would need a model of their own"
            if int(result) < 0:
                continue
            strings = []
            for text, cut in _STRING.findall(arguments):
                assert not cut, f"a string was cut: {line[:200]}"
                strings.append(bytes.fromhex(text.replace("\\x", "")))
            words = [word.strip() for word in _STRING.sub('""', arguments).split(",")]
            if name in _AT:  # some machines have only these
                name = name[:-2]
            yield Call(name, strings, words, int(result))


class File:
    """A file's bytes as programs see them, as they are safe, and the changes between: (offset, bytes), or (size, None)."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.safe = b""
        self.changes: list[tuple[int, bytes | None]] = []

    def change(self, offset: int, data: bytes | None) -> None:
        self.changes.append((offset, data))
        _change(self.data, offset, data)

    def sync(self) -> None:
        self.safe = bytes(self.data)
        self.changes.clear()


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


class Folder:
    """A folder's names in the same three ways. A change is (when, name, what it names then).

    Attributes:
        parents: The folders it was in, one after the other, if it was moved.
    """

    def __init__(self) -> None:
        self.parents: list[tuple[Folder, str]] = []
        self.names: dict[str, Node] = {}
        self.safe: dict[str, Node] = {}
        self.changes: list[tuple[int, str, Node | None]] = []

    def sync(self) -> None:
        self.safe = dict(self.names)
        self.changes.clear()


Node: TypeAlias = File | Folder
State: TypeAlias = dict[str, bytes | None]  # path -> content, or None for a folder


class Disk:
    """The folder `base`, empty at first, and all that recorded calls do under it."""

    def __init__(self, base: Path) -> None:
        self._base = os.fspath(base) + "/"
        self._root = Folder()
        self._time = 0
        self._open: dict[int, tuple[Node | None, list[int]]] = {}  # descriptor -> node, position
        self._opened: dict[int, str | None] = {}  # descriptor -> path

    def apply(self, call: Call) -> bool:
        """Do what a call did; tell whether it changed anything, or made anything safe."""
        name, strings, words, result = call
        if name == "openat":
            return self._openat(self._paths(call)[0], words[2], result)
        if name in ("write", "writev"):
            node, position = self._open.get(int(words[0]), (None, [0]))
            if not isinstance(node, File):
                return False
            node.change(position[0], b"".join(strings)[:result])
            position[0] += result
            return True
        if name == "pwrite64":
            node, _ = self._open[int(words[0])]
            assert isinstance(node, File)
            node.change(int(words[3]), strings[0][:result])
            return True
        if name == "ftruncate":
            node, _ = self._open[int(words[0])]
            assert isinstance(node, File)
            node.change(int(words[1]), None)
            return True
        if name in ("fsync", "fdatasync"):
            node, _ = self._open[int(words[0])]
            if node is None or not node.changes:
                return False
            node.sync()
            return True
        if name == "syncfs":
            node, _ = self._open[int(words[0])]
            if node is not None:
                _sync_all(self._root)
            return node is not None
        paths = self._paths(call)
        if None in paths:
            return False
        if name == "mkdir":
            self._name(paths[0], Folder())
        elif name in ("unlink", "rmdir"):
            self._name(paths[0], None)
        elif name == "link":
            self._name(paths[1], self._find(paths[0]))
        elif name == "rename" or (name == "renameat2" and "RENAME_EXCHANGE" not in words):
            moved = self._find(paths[0])
            self._name(paths[0], None)
            self._name(paths[1], moved)
        elif name == "renameat2":
            one, other = (self._find(path) for path in paths)
            self._name(paths[0], other)
            self._name(paths[1], one)
        else:
            raise AssertionError(f"the model knows nothing of {name}")
        return True

    def forget_descriptors(self) -> None:
        """The process ended."""
        self._open.clear()
        self._opened.clear()

    def _openat(self, path: str | None, flags: str, descriptor: int) -> bool:
        self._opened[descriptor] = path
        if path is None:
            self._open[descriptor] = (None, [0])
            return False
        node = self._find(path) if path else self._root
        changed = False
        if node is None:
            assert "O_CREAT" in flags, path
            node = File()
            self._name(path, node)
            changed = True
        elif "O_TRUNC" in flags and isinstance(node, File):
            node.change(0, None)
            changed = True
        assert "O_APPEND" not in flags
        self._open[descriptor] = (node, [0])
        return changed

    def _inside(self, raw: bytes) -> str | None:
        path = os.fsdecode(raw)
        return path[len(self._base) :].rstrip("/") if (path + "/").startswith(self._base) else None

    def _paths(self, call: Call) -> list[str | None]:
        """The paths of a call; one that is outside is `None`. What `shutil.rmtree` does is relative to descriptors."""
        places = [number for number, word in enumerate(call.words) if word == '""']
        paths = []
        for number, raw in zip(places, call.strings, strict=True):
            before = call.words[number - 1] if number else ""
            if raw.startswith(b"/") or not before.isdigit():
                paths.append(self._inside(raw))
                continue
            folder = self._opened[int(before)]
            if folder is not None:
                node = self._find(folder) if folder else self._root
                assert node is self._open[int(before)][0], f"{folder} was moved while it was open"
            paths.append(None if folder is None else f"{folder}/{os.fsdecode(raw)}".strip("/"))
        return paths

    def _find(self, path: str | None) -> Node | None:
        node: Node | None = self._root
        for part in (path or "").split("/"):
            assert isinstance(node, Folder), path
            node = node.names.get(part)
        return node

    def _name(self, path: str | None, node: Node | None) -> None:
        assert path
        parent, _, last = path.rpartition("/")
        folder = self._find(parent) if parent else self._root
        assert isinstance(folder, Folder), path
        if node is None:
            del folder.names[last]
        else:
            folder.names[last] = node
            if isinstance(node, Folder):
                node.parents.append((folder, last))
        self._time += 1
        folder.changes.append((self._time, last, node))

    # What may be left.

    def states(self, rng: random.Random, count: int) -> Iterable[tuple[str, State]]:
        """What the next start may find: the extremes, and `count` mixtures."""
        yield "nothing but what was synced", self._state(Choice(0, 0, rng))
        yield "all names, no data that was not synced", self._state(Choice(1, 0, rng))
        yield "all names, zeros for data", self._state(Choice(1, 0, rng, fill=b"\0"))
        yield "all names, garbage for data", self._state(Choice(1, 0, rng, fill=b"\xa5"))
        yield "all data, no names that were not synced", self._state(Choice(0, 1, rng))
        yield "everything, as after a kill", self._state(Choice(1, 1, rng))
        for number in range(count):
            if number % 2:
                yield "a mixture", self._state(Choice(rng.random(), rng.random(), rng))
            else:
                until = rng.randrange(max(1, self._time - 12), self._time + 2)
                yield (
                    "names in order until some moment, a mixture of data",
                    self._state(Choice(0, rng.random(), rng, until=until)),
                )

    def _state(self, choice: Choice) -> State:
        state: State = {}
        chosen: dict[int, bytes] = {}
        moved: dict[int, list[tuple[int, str]]] = {}

        # In no function of its own that knows these: it would know itself, and keep them until the collector comes.
        todo: list[tuple[Folder, str]] = [(self._root, "")]
        while todo:
            folder, prefix = todo.pop()
            names = dict(folder.safe)
            for when, name, node in folder.changes:
                if not choice.name(when):
                    continue
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
            for name, node in names.items():
                if isinstance(node, Folder):
                    state[prefix + name] = None
                    if len(node.parents) > 1:
                        moved.setdefault(id(node), []).append((node.parents.index((folder, name)), prefix + name))
                    todo.append((node, f"{prefix}{name}/"))
                else:
                    if id(node) not in chosen:
                        chosen[id(node)] = choice.data(node)
                    state[prefix + name] = chosen[id(node)]
        # A folder that was moved may be in its old place, in its new one, or lost; but no file system has it twice.
        for places in moved.values():
            for _, path in sorted(places)[:-1]:
                for name in [name for name in state if f"{name}/".startswith(f"{path}/")]:
                    del state[name]
        return state


def _sync_all(folder: Folder) -> None:
    folder.sync()
    for node in folder.names.values():
        if isinstance(node, Folder):
            _sync_all(node)
        else:
            node.sync()


class Choice:
    """How much of what was not synced is there all the same.

    Args:
        names: The share of names, from 0 to 1.
        data: The share of writes.
        rng: Decides which.
        until: If given, all names that came before this moment, and no later ones.
        fill: If given, what stands wherever a write did not arrive but made its file longer.
    """

    def __init__(
        self, names: float, data: float, rng: random.Random, *, until: int | None = None, fill: bytes | None = None
    ) -> None:
        self._names, self._data, self._rng, self._until, self._fill = names, data, rng, until, fill

    def name(self, when: int) -> bool:
        if self._until is not None:
            return when < self._until
        return self._rng.random() < self._names

    def data(self, file: File) -> bytes:
        content = bytearray(file.safe)
        for offset, data in file.changes:
            dice = self._rng.random()
            if dice < self._data:
                _change(content, offset, data)
            elif data is not None and dice < 2 * self._data and self._data < 1:
                for start in range(0, len(data), SECTOR):
                    if self._rng.random() < 0.5:
                        _change(content, offset + start, data[start : start + SECTOR])
            elif data is not None and self._fill is not None and offset + len(data) > len(content):
                missing = offset + len(data) - len(content)
                _change(content, len(content), self._fill * missing)
        return bytes(content)


def lay_out(state: State, where: Path, *, links: bool = False) -> None:
    """Make files and folders of a state; with `links` the names of one file are hard links."""
    where.mkdir()
    made: dict[int, Path] = {}
    for name, content in state.items():
        if content is None:
            (where / name).mkdir()
        elif links and len(content) > 1 and id(content) in made:  # shorter ones are one object, whatever file they are of
            (where / name).hardlink_to(made[id(content)])
        else:
            (where / name).write_bytes(content)
            made[id(content)] = where / name
