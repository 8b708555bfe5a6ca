"""snapshots, restore, prune and diff: what they say is so, and what they change is what was asked for."""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from blake3 import blake3

from perdure.cli import restoring
from perdure.cli.pruning import _Agreed, _remove_broken
from perdure.errors import BackendError, CodecError, IntegrityError, SnapshotNotFoundError
from perdure.snapshots import KeepLatest, PersistentStateMixin, Snapshot, StateStore, folder_reading
from perdure.snapshots.bucket_reading import BackendReading
from perdure.snapshots.cleaning import clean
from perdure.snapshots.disk import lock_folder, unlock
from perdure.snapshots.manifest import CHUNK, Broken, Component, Part, digest_of, write_manifest
from perdure.snapshots.place import Place, open_place
from perdure.testing import servers

PERDURE = [sys.executable, "-m", "perdure"]


class Files(PersistentStateMixin):
    """Keeps bytes in files."""

    def __init__(self, **files: bytes) -> None:
        self.files = files

    def save_state(self, path: Path) -> None:
        path.mkdir()
        for name, data in self.files.items():
            (path / f"{name}.bin").write_bytes(data)

    def load_state(self, path: Path) -> None:
        self.files = {file.stem: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(params=["folder", "sqlite"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for snapshots that does not exist yet."""
    return f"file:{tmp_path}/run" if request.param == "folder" else f"sqlite:{tmp_path}/run.db?sync=normal"


def fill(url: str, count: int = 4, *, frozen: bytes = b"f" * 5000, **options: Any) -> list[Snapshot]:
    """Save some snapshots of a model, of which one part never changes, and a value."""
    files = Files(frozen=frozen, weights=b"")
    with StateStore(url, options.pop("names", "%H%M%S%f.state"), **options) as store:
        store.register("model", files)
        config = store.register_value("config", {"lr": 0.1, "layers": [1, 2]})
        before = len(store.snapshots())
        for number in range(before + 1, before + count + 1):
            files.files["weights"] = bytes([number]) * 1000
            config.value["lr"] = 0.1 / number
            store.save_state({"step": number * 100, "loss": 1 / number, "note": "text", "config": {"deep": [number]}})
        return store.snapshots()


@pytest.fixture
def saved(where: str) -> list[Snapshot]:
    return fill(where)


def part_of(snapshot: Snapshot, part: str) -> Path:
    assert snapshot.path is not None
    return snapshot.path / part


def damage(url: str, snapshot: Snapshot, part: str = "model/weights.bin") -> None:
    """Change a byte of a part where it is stored, and of nothing else."""
    if snapshot.path is not None:
        path = snapshot.path / part
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.unlink()  # it may be a hard link
        path.write_bytes(data)
        return
    with opened(url) as place:
        told = snapshot.parts[part]
        key = f"parts/{told.homes[0] if told.homes else snapshot.id}/{told.chunks[0]}"
        data = bytearray(place.backend.get(key).data)  # type: ignore[attr-defined]
        data[0] ^= 1
        place.backend.put(key, bytes(data))  # type: ignore[attr-defined]


def damage_manifest(url: str, snapshot: Snapshot, data: bytes | None = None) -> str:
    """Change a byte of a manifest, or all of it, and tell how the place calls it now."""
    if snapshot.path is not None:
        path = snapshot.path / "manifest.json"
        path.write_bytes(path.read_bytes().replace(b'"step"', b'"stop"') if data is None else data)
        return snapshot.name
    key = f"snapshots/{snapshot.sequence:010d}"
    with opened(url) as place:
        backend = place.backend  # type: ignore[attr-defined]
        backend.put(key, backend.get(key).data.replace(b'"step"', b'"stop"') if data is None else data)
    return key


def make_newer(url: str, snapshot: Snapshot) -> str:
    """Let a manifest say that a later version wrote it."""
    body, _, _ = write_manifest(snapshot).replace(b"perdure snapshot 1", b"perdure snapshot 2").rpartition(b',\n "seal"')
    return damage_manifest(url, snapshot, body + b',\n "seal": "%s"\n}\n' % blake3(body).hexdigest().encode())


class opened:  # noqa: N801 - used like the function
    def __init__(self, url: str) -> None:
        self.place: Place = open_place(url, sync=None, share=True)

    def __enter__(self) -> Place:
        return self.place

    def __exit__(self, *_: object) -> None:
        self.place.close()


def names(url: str) -> list[str]:
    with opened(url) as place:
        return [entry.name for entry in place.entries()]


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)).replace(os.sep, "/"): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# ---------------------------------------------------------------------------------------------------------------- snapshots


@pytest.mark.smoke
def test_snapshots_are_listed_oldest_first_one_a_line(run, where, saved) -> None:
    heading, *lines = run("snapshots", where).out.splitlines()
    assert heading.split() == ["#", "saved", "age", "size", "new", "step", "loss", "note", "name"]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert [line.split()[-1] for line in lines] == [snapshot.name for snapshot in saved]
    assert " 0.3333333333333333 " in lines[2]  # exact in a pipe


def test_json_has_everything(run, where, saved) -> None:
    told = run("snapshots", where, "--json").json
    assert told["verified"] is False
    assert told["broken"] == []
    for shown, snapshot in zip(told["snapshots"], saved, strict=True):
        assert shown["state"] == "listed"
        assert (shown["sequence"], shown["name"], shown["id"]) == (snapshot.sequence, snapshot.name, snapshot.id)
        assert datetime.fromisoformat(shown["saved"]) == snapshot.saved
        assert shown["size"] == snapshot.size
        assert shown["metadata"] == snapshot.metadata
        assert shown["path"] == (str(snapshot.path) if snapshot.path else None)
        assert {name: part["digest"] for name, part in shown["parts"].items()} == {
            name: part.digest for name, part in snapshot.parts.items()
        }
        assert {name: (c["kind"], tuple(c["parts"])) for name, c in shown["components"].items()} == {
            name: (component.kind, component.parts) for name, component in snapshot.components.items()
        }


def test_new_bytes_are_those_that_the_one_before_lacks(run, where, saved) -> None:
    first, *others = run("snapshots", where, "--json").json["snapshots"]
    assert first["new"] == first["size"] > 6000
    for shown in others:
        assert shown["new"] == shown["size"] - 5000


def test_what_is_no_snapshot_is_not_listed_and_what_is_broken_is_named(run, tmp_path) -> None:
    fill("run", 1)
    Path("run/foreign").mkdir()
    Path("run/file.txt").touch()
    Path("run/torn.state").mkdir()
    Path("run/torn.state/manifest.json").write_text("{}")
    told = run("snapshots", "run", "--json").json
    assert len(told["snapshots"]) == 1
    assert [(entry["name"], entry["damaged"]) for entry in told["broken"]] == [("torn.state", True)]
    assert run("snapshots", "run").out.splitlines()[-1] == "broken  torn.state: the manifest is damaged or foreign"
    assert "prune URL --broken removes" in run("snapshots", "run", "--verify", code=1).err


def test_what_is_of_a_newer_format_is_not_called_removable(run, where) -> None:
    saved = fill(where, 2)
    make_newer(where, saved[1])
    answer = run("snapshots", where)
    assert answer.out.splitlines()[-1].startswith("unknown ")
    assert "--broken" not in answer.err


def test_whole_snapshots_are_verified(run, where, saved) -> None:
    assert all(line.endswith("  whole") for line in run("snapshots", where, "--verify").out.splitlines()[1:])
    told = run("snapshots", where, "--verify", "--json").json
    assert told["verified"] is True
    assert [shown["state"] for shown in told["snapshots"]] == ["whole"] * 4


def test_a_damaged_part_is_named(run, where, saved) -> None:
    damage(where, saved[1])
    run("snapshots", where)  # by the manifests alone nobody can tell
    answer = run("snapshots", where, "--verify", code=1)
    ends = [line.partition(".state")[2].strip() for line in answer.out.splitlines()[1:]]
    assert ends == ["whole", "damaged: model/weights.bin", "whole", "whole"]
    assert answer.err.startswith(f"{saved[1].name}/model/weights.bin: the part is damaged")
    told = run("snapshots", where, "--verify", "--json", code=1).json["snapshots"]
    assert [shown["state"] for shown in told] == ["whole", "damaged", "whole", "whole"]
    assert [one["part"] for one in told[1]["damage"]] == ["model/weights.bin"]


def test_a_part_that_several_share_is_read_once_and_damages_all_of_them(run, where, saved, monkeypatch) -> None:
    with opened(where) as place, closing(place.read(saved[0])) as reading:
        kind = type(reading)
    read: list[str] = []
    original: Any = kind.damage

    def spy(self: Any, parts: Iterable[Part], report: Any) -> Any:
        wanted = list(parts)
        read.extend(part.name for part in wanted)
        return original(self, wanted, report)

    monkeypatch.setattr(kind, "damage", spy)
    run("snapshots", where, "--verify")
    assert read.count("model/frozen.bin") == 1
    assert read.count("model/weights.bin") == 4
    if saved[0].path is not None:
        with part_of(saved[0], "model/frozen.bin").open("r+b") as file:  # in place: all hard links show it
            file.write(b"x")
    else:
        damage(where, saved[0], "model/frozen.bin")
    told = run("snapshots", where, "--verify", "--json", code=1).json["snapshots"]
    assert [[one["part"] for one in shown["damage"]] for shown in told] == [["model/frozen.bin"]] * 4


def test_missing_and_cut_parts_are_told(run, tmp_path) -> None:
    a, b, *_ = fill("run")
    part_of(a, "model/weights.bin").unlink()
    path = part_of(b, "config.pkl")
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    answer = run("snapshots", "run", "--verify", code=1)
    assert f"{a.name}/model/weights.bin: the part is missing" in answer.err
    assert f"{b.name}/config.pkl: the part has {len(data) - 1} bytes and not {len(data)}" in answer.err


def test_a_part_of_somebody_else_does_not_keep_the_others_from_being_verified(run, tmp_path, monkeypatch) -> None:
    a, b = fill("run", 2)
    original = folder_reading.open_read

    def refuse(path: str) -> int:  # as root, who may read everything, there is no other way
        if path == str(part_of(a, "model/weights.bin")):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(folder_reading, "open_read", refuse)
    told = run("snapshots", "run", "--verify", "--json", code=1).json["snapshots"]
    assert [shown["state"] for shown in told] == ["damaged", "whole"]
    assert told[0]["damage"] == [{"part": "model/weights.bin", "problem": "cannot read (Permission denied)"}]
    assert told[1]["name"] == b.name


def test_one_that_is_removed_meanwhile_is_left_out(run, where, saved, monkeypatch) -> None:
    with opened(where) as place:
        kind = type(place)
    original: Any = kind.read

    def remove_first(self: Any, snapshot: Snapshot) -> Any:
        if snapshot == saved[2]:
            with opened(where) as other:
                other.remove(snapshot)
        return original(self, snapshot)

    monkeypatch.setattr(kind, "read", remove_first)
    told = run("snapshots", where, "--verify", "--json").json["snapshots"]
    assert [shown["sequence"] for shown in told] == [1, 2, 4]


def test_a_thousand_snapshots_are_listed_from_their_manifests_alone(run, tmp_path) -> None:
    digest = digest_of(b"")
    names = ["model.pkl", *(f"model/{n}.npy" for n in range(20))]
    parts = {name: Part(name, 10, (digest,)) for name in names}  # no such file is there
    for number in range(1, 1001):
        saved = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        components = {"model": Component("state_dict", tuple(parts))}
        name = f"{number:04d}.state"
        snapshot = Snapshot(f"{number:032x}", number, name, saved, {"step": number, "loss": 1 / number}, components, parts)
        Path("run", name).mkdir(parents=True)
        Path("run", name, "manifest.json").write_bytes(write_manifest(snapshot))
    lines = run("snapshots", "run").out.splitlines()
    assert len(lines) == 1001
    assert lines[-1].split()[0] == "1000"
    assert len(run("snapshots", "run", "--json").json["snapshots"]) == 1000


def test_the_current_folder_is_the_default(run, tmp_path) -> None:
    fill(str(tmp_path), 1)
    assert len(run("snapshots").out.splitlines()) == 2


def test_an_empty_place_lists_nothing(run, tmp_path) -> None:
    Path("run").mkdir()
    assert run("snapshots", "run").out == ""
    assert run("snapshots", "run", "--json", "--verify").json["snapshots"] == []


@pytest.mark.parametrize(
    "words", [["snapshots"], ["restore", "to"], ["prune", "--keep", "latest=1"], ["diff"]], ids=lambda words: words[0]
)
def test_a_misspelt_place_is_noticed_and_nothing_is_created(run, tmp_path, words) -> None:
    command, *rest = words
    for url in ("nothing", "file:nothing", "sqlite:///nothing.db"):
        answer = run(command, url, *rest, code=3)
        assert "there is nothing here" in answer.err
        assert answer.err.count("\n") == 1
    assert "Options need a scheme" in run(command, "nothing?sync=full", *rest, code=3).err
    assert os.listdir(tmp_path) == []
    (snapshot,) = fill("run", 1)
    answer = run(command, snapshot.path, *rest, code=2)
    assert f"Name the folder that it is in: {tmp_path}/run" in answer.err


def test_metadata_cannot_command_a_terminal(run, where) -> None:
    evil = "\x1b[2Jevil\nline \u202e"
    with StateStore(where, trusted=True) as store:
        store.register_value("v", 1)
        store.save_state({evil: evil, "step": 1})
        store.save_state({evil: f"{evil}!", "step": 1, "only": evil})
    for words in (["snapshots"], ["diff"], ["prune", "--keep", "latest=1", "-n"]):
        out = run(words[0], where, *words[1:], code=None).out
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "\\x1b[2Jevil" in out
    assert run("snapshots", where, "--json").json["snapshots"][0]["metadata"] == {evil: evil, "step": 1}


@pytest.fixture
def terminal(tmp_path: Path) -> Any:
    """Run a command on a terminal of some width, and return the lines it shows, without colours."""
    pty = pytest.importorskip("pty")
    import fcntl
    import termios

    def terminal(*words: str, width: int = 80, typed: str = "", code: int = 0) -> list[str]:
        outside, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        told = termios.tcgetattr(inside)
        told[3] &= ~termios.ECHO
        termios.tcsetattr(inside, termios.TCSANOW, told)
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        env |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        child = subprocess.Popen([*PERDURE, *words], cwd=tmp_path, stdin=inside, stdout=inside, stderr=inside, env=env)
        os.close(inside)
        os.write(outside, typed.encode())
        shown = b""
        while True:
            try:
                piece = os.read(outside, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            if not piece:
                break
            shown += piece
        assert child.wait() == code, shown
        os.close(outside)
        # A bar comes and goes on a line that it returns to.
        return [line.rpartition("\r")[2] for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).split("\r\n")]

    return terminal


def test_a_listing_of_default_names_fits_80_columns(terminal, tmp_path) -> None:
    snapshots = fill(f"file:{tmp_path}/run", 12, names="%Y-%m-%d_%H-%M-%S,%f.state")
    for width in (80, 100, 160):
        lines = terminal("snapshots", "run", width=width)
        assert max(map(len, lines)) <= width
        for snapshot, line in zip(snapshots, lines[1:], strict=False):
            assert line.split()[0] == str(snapshot.sequence)
            assert line.endswith(snapshot.name)  # never cut
    assert {"step", "loss"} <= set(lines[0].split())
    lines = terminal("snapshots", "run", "--verify")
    assert max(map(len, lines)) <= 80
    damage("", snapshots[3])
    lines = terminal("snapshots", "run", "--verify", code=1)
    rows = [line for line in lines if ".state  " in line]
    assert len(rows) == 12
    assert max(map(len, rows)) <= 80
    assert rows[3].endswith(f"{snapshots[3].name}  damaged: model/weights.bin")


def test_numbers_are_drawn_on_a_terminal(terminal, tmp_path) -> None:
    saved = fill(f"file:{tmp_path}/run", 12)
    total = sum(snapshot.size for snapshot in saved)
    drawn = {line.split()[0]: line for line in terminal("snapshots", "run")[13:] if line}
    assert re.fullmatch(r"loss  █▄\S{10}  0\.08333 \.\. 1", drawn["loss"])
    assert re.fullmatch(r"size  ▄{12}  6\.\d kB", drawn["size"])
    once = f"{(total - 11 * 5000) / 1000:.1f} kB"
    assert drawn["12"] == f"12 snapshots, {total / 1000:.1f} kB in all, {once} with equal parts counted once"
    drawn = {line.split()[0]: line for line in terminal("snapshots", "run", "--metric", "step")[13:] if line}
    assert drawn["step"].endswith("█  100 .. 1200")
    assert "loss" not in drawn


def test_what_nothing_shares_is_counted_once_anyway(terminal, tmp_path) -> None:
    (snapshot,) = fill(f"file:{tmp_path}/run", 1)
    assert terminal("snapshots", "run")[-2] == f"1 snapshot, {snapshot.size / 1000:.1f} kB"


def test_pieces_of_a_bucket_are_counted_once_however_many_share_them(terminal, tmp_path) -> None:
    url = f"sqlite:{tmp_path}/run.db?sync=normal"
    total = sum(snapshot.size for snapshot in fill(url, 3))
    shown = terminal("snapshots", url)[-2]
    assert (
        shown == f"3 snapshots, {total / 1000:.1f} kB in all, {stored_bytes(url) / 1000:.1f} kB with equal parts counted once"
    )


def test_nothing_is_drawn_in_a_pipe(run, tmp_path) -> None:
    fill("run", 3)
    assert len(run("snapshots", "run", "--metric", "loss").out.splitlines()) == 4


def test_a_metric_that_no_snapshot_has_is_wrong_usage(run, tmp_path) -> None:
    fill("run", 2)
    assert "Did you mean 'loss'? There are: 'loss', 'step'." in run("snapshots", "run", "--metric", "los", code=2).err
    run("snapshots", "run", "--metric", "note", code=2)


# ----------------------------------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize(("which", "number"), [("1", 1), ("3", 3), ("latest", 4), ("previous", 3)])
def test_snapshots_are_chosen_by_number_and_by_word(run, where, saved, which, number) -> None:
    told = run("restore", where, "out", "--snapshot", which, "--json").json
    assert told["snapshot"]["id"] == saved[number - 1].id


def test_snapshots_are_chosen_by_name_and_path(run, where, saved) -> None:
    ways = [saved[1].name] + ([str(saved[1].path), f"run/{saved[1].name}"] if saved[1].path else [])
    for number, which in enumerate(ways):
        told = run("restore", where, f"out{number}", "--snapshot", which, "--json").json
        assert told["snapshot"]["id"] == saved[1].id


@pytest.mark.parametrize("which", ["7", "0", "nobody.state", "99999999999999999999", "previous", "-1"])
def test_what_is_not_there_is_not_found(run, where, which) -> None:
    fill(where, 1)
    answer = run("diff", where, "--", which, "1", code=1)
    assert "there is no" in answer.err
    assert answer.err.count("\n") == 1


def test_a_number_that_is_also_a_name_has_to_be_made_plain(run, tmp_path) -> None:
    fill("run", 1, names="2")
    fill("run", 1, names="second")
    answer = run("restore", "run", "out", "--snapshot", "2", code=2)
    assert "2 can mean '2', 'second'" in answer.err
    assert run("restore", "run", "out", "--snapshot", "./2", "--json").json["snapshot"]["sequence"] == 1
    assert run("restore", "run", "out2", "--snapshot", "second", "--json").json["snapshot"]["sequence"] == 2


def test_a_number_may_be_that_of_a_damaged_manifest(run, where, saved) -> None:
    names = [damage_manifest(where, saved[number]) for number in (1, 2)]
    answer = run("restore", where, "out", "--snapshot", "2", code=1)
    if saved[1].path is None:  # there the key tells the number
        assert "the manifest is damaged" in answer.err
        assert names[0] in answer.err
    else:
        assert "there is no snapshot of this number" in answer.err
        assert f"It may be one of those whose manifest is damaged: {', '.join(names)}." in answer.err
    assert "It may be one of those whose manifest is damaged" in run("diff", where, "7", "1", code=1).err
    assert not Path("out").exists()


def test_a_number_may_be_that_of_a_newer_format(run, tmp_path) -> None:
    saved = fill("run", 2)
    make_newer("run", saved[1])
    answer = run("restore", "run", "out", "--snapshot", "2", code=1)
    assert f"It may be one of those whose manifest cannot be read here: {saved[1].name}." in answer.err


# ------------------------------------------------------------------------------------------------------------------ restore


def test_a_restored_snapshot_can_be_loaded_and_read_by_others(run, where, saved, tmp_path) -> None:
    answer = run("restore", where, "out")
    assert answer.out.startswith(f"restored snapshot 4 ({saved[3].name}) to {tmp_path}/out: 3 files, 6.0 kB in ")
    assert answer.err == ""
    assert content(Path("out")).keys() == {*saved[3].parts, "manifest.json"}
    assert Path("out/model/weights.bin").read_bytes() == b"\4" * 1000
    files = Files()
    with StateStore("elsewhere") as store:
        store.register("model", files)
        config = store.register_value("config", {})
        store.load_state("./out")
        store.load_state(tmp_path / "out")
    assert files.files == {"frozen": b"f" * 5000, "weights": b"\4" * 1000}
    assert config.value == {"lr": 0.1 / 4, "layers": [1, 2]}
    told = json.loads(Path("out/manifest.json").read_text())
    assert told["metadata"] == saved[3].metadata
    assert all("homes" not in part for part in told["parts"].values())


def test_a_snapshot_in_a_bucket_is_restored(run, tmp_path) -> None:
    pytest.importorskip("boto3")
    big = os.urandom(2 * CHUNK + 5)
    with servers.stub() as server, server.environment():
        url = f"s3://snapshots/{uuid4()}?create=yes&endpoint_url={quote(server.endpoint_url)}"
        fill(url, 2, frozen=big)
        told = run("restore", url, "out", "--json").json
        assert told["snapshot"]["sequence"] == 2
        assert told["passed_over"] == []
        assert [shown["state"] for shown in run("snapshots", url, "--verify", "--json").json["snapshots"]] == ["whole"] * 2
    assert Path("out/model/frozen.bin").read_bytes() == big
    run("snapshots", tmp_path, "--verify")  # the restored one


def test_parts_of_all_sizes_are_restored(run, where, tmp_path, monkeypatch) -> None:
    files = Files(empty=b"", one=b"1", exact=os.urandom(CHUNK), more=os.urandom(CHUNK + 1), many=os.urandom(6 * CHUNK))
    asked: list[int] = []
    original = BackendReading.fetch

    def fetch(self: Any, parts: Iterable[Part], report: Any) -> Any:
        wanted = list(parts)
        asked.append(sum(part.size for part in wanted))
        return original(self, wanted, report)

    monkeypatch.setattr(BackendReading, "fetch", fetch)
    with StateStore(where) as store:
        store.register("model", files)
        store.save_state()
    run("restore", where, "out")
    assert content(Path("out/model")) == {f"{name}.bin": data for name, data in files.files.items()}
    assert max(asked, default=0) <= 4 * CHUNK  # bounded, though a part is longer
    restored = run("snapshots", tmp_path, "--verify", "--json", code=None).json
    assert ("out", "whole") in [(shown["name"], shown["state"]) for shown in restored["snapshots"]]


def test_damaged_snapshots_are_passed_over_and_named(run, where, saved) -> None:
    damage(where, saved[3])
    damage(where, saved[2], "config.pkl")
    answer = run("restore", where, "out")
    assert answer.out.startswith("restored snapshot 2 ")
    first, second = answer.err.splitlines()
    assert first.startswith(f"passed over {saved[3].name}: model/weights.bin: the part is damaged")
    assert second.startswith(f"passed over {saved[2].name}: config.pkl: the part is damaged")
    told = run("restore", where, "again", "--json").json
    assert [one["name"] for one in told["passed_over"]] == [saved[3].name, saved[2].name]
    assert sorted(path for path in os.listdir() if path.startswith(".")) == []


def test_a_broken_manifest_is_passed_over(run, tmp_path) -> None:
    saved = fill("run", 2)
    part_of(saved[1], "manifest.json").write_text("{}")
    answer = run("restore", "run", "out")
    assert answer.out.startswith("restored snapshot 1 ")
    assert answer.err.startswith(f"passed over {saved[1].name}: manifest.json: the manifest is damaged")


def test_one_that_was_asked_for_is_not_replaced_by_another(run, where, saved) -> None:
    damage(where, saved[3])
    for which in ("4", "latest", saved[3].name):
        answer = run("restore", where, "out", "--snapshot", which, code=1)
        assert f"{saved[3].name}/model/weights.bin" in answer.err
        assert "\0" not in answer.err
        assert "out" not in os.listdir()
    assert [name for name in os.listdir() if name.startswith(".perdure-restore")] == []


def test_of_nothing_whole_nothing_is_restored(run, where) -> None:
    (snapshot,) = fill(where, 1)
    damage(where, snapshot)
    err = run("restore", where, "out", code=1).err
    assert "the only snapshot here is not whole. perdure snapshots --verify says what is wrong with it." in re.sub(
        r"\S+ -m perdure", "perdure", err
    )
    for other in fill(where, 1)[1:]:
        damage(where, other)
    assert "none of the 2 snapshots here is whole" in run("restore", where, "out", code=1).err
    with opened(where) as place:
        for one in place.entries():
            assert isinstance(one, Snapshot)
            place.remove(one)
    assert "there are no snapshots here" in run("restore", where, "out", code=1).err
    assert not Path("out").exists()


def test_an_older_one_does_not_stand_for_one_of_a_newer_format(run, tmp_path) -> None:
    saved = fill("run", 2)
    make_newer("run", saved[1])
    answer = run("restore", "run", "out", code=1)
    assert "Upgrade perdure." in answer.err
    assert not Path("out").exists()
    run("restore", "run", "out", "--snapshot", "1")


def test_one_that_is_removed_while_it_is_restored_is_passed_over(run, where, saved, monkeypatch) -> None:
    original: Any = restoring._restore

    def remove_first(place: Place, snapshot: Snapshot, final: str, quiet: bool) -> None:
        if snapshot == saved[3]:
            place.remove(snapshot)
        original(place, snapshot, final, quiet)

    monkeypatch.setattr(restoring, "_restore", remove_first)
    answer = run("restore", where, "out")
    assert answer.out.startswith("restored snapshot 3 ")
    assert answer.err.startswith(f"passed over {saved[3].name}: ")


def test_nothing_is_overwritten(run, where, saved, tmp_path) -> None:
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    assert "this folder is not empty" in run("restore", where, "full", code=1).err
    Path("file").write_text("mine")
    answer = run("restore", where, "file", code=3)
    assert "file: this is a file, not a folder. Nothing was changed; name a folder that does not exist yet." in answer.err
    assert Path("file").read_text() == Path("full/mine").read_text() == "mine"
    assert os.listdir("full") == ["mine"]
    run("restore", where, "out")
    assert "this folder is not empty" in run("restore", where, "out", code=1).err
    assert "cp copies" in run("restore", where, "s3://bucket/prefix", code=2).err


def test_what_comes_to_be_there_meanwhile_is_not_overwritten(run, where, saved, monkeypatch) -> None:
    original = restoring.sync_folder

    def somebody_is_faster(path: str) -> None:
        if not Path("out").exists():
            Path("out").mkdir()
            Path("out/mine").write_text("mine")
        original(path)

    monkeypatch.setattr(restoring, "sync_folder", somebody_is_faster)
    run("restore", where, "out", code=3)
    assert content(Path("out")) == {"mine": b"mine"}
    assert [name for name in os.listdir() if name.startswith(".perdure-restore")] == []


def test_an_empty_folder_is_filled_and_stays_as_private_as_it_was(run, where, saved) -> None:
    Path("out").mkdir(0o700)
    os.symlink("out", "link")
    run("restore", where, "link")
    assert Path("link").is_symlink()
    assert len(content(Path("out"))) == 4
    if os.name != "nt":
        assert stat.S_IMODE(Path("out").stat().st_mode) == 0o700


def test_the_folder_one_is_in_is_not_replaced(run, where, saved, tmp_path, monkeypatch) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert "this is the folder you are in" in run("restore", where, ".", code=2).err
    assert os.listdir() == []


def test_a_restored_folder_is_not_put_among_the_snapshots(run, tmp_path) -> None:
    fill("run", 1)
    assert "would be one of its snapshots" in run("restore", "run", "run/out", code=2).err
    run("restore", "run", "new/folders/out")
    assert len(content(Path("new/folders/out"))) == 4


def test_leftovers_of_killed_restores_are_swept_and_live_ones_are_not(run, where, saved, tmp_path) -> None:
    for name in ("dead", "live"):
        Path(f".perdure-restore-{name}").mkdir()
        Path(f".perdure-restore-{name}/part").write_text("x")
    lock = lock_folder(str(tmp_path / ".perdure-restore-live"), shared=True)
    try:
        run("restore", where, "out")
    finally:
        unlock(lock)
    assert [name for name in os.listdir() if name.startswith(".perdure-restore")] == [".perdure-restore-live"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_one_that_is_killed_in_the_middle_leaves_no_target_and_the_next_one_cleans_up(run, where, saved, tmp_path) -> None:
    code = (
        "import os, signal, sys\n"
        "from perdure.cli import app, restoring\n"
        "restoring.sync_folder = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"  # when all files are written
        "app.app(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, "restore", where, "out"], cwd=tmp_path, check=False)
    assert done.returncode == -9
    (left,) = [name for name in os.listdir() if name.startswith(".perdure-restore")]
    assert content(Path(left)).keys() == {*saved[3].parts, "manifest.json"}
    assert not Path("out").exists()
    run("restore", where, "out")
    assert not Path(left).exists()


def test_a_full_disk_leaves_nothing(run, where, saved, monkeypatch) -> None:
    def full(fd: int, pieces: Any, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(restoring, "write_at", full)
    answer = run("restore", where, "out", code=3)
    assert "No space left" in answer.err
    assert answer.err.count("\n") == 1
    assert [name for name in os.listdir() if name.startswith((".perdure-restore", "out"))] == []


# -------------------------------------------------------------------------------------------------------------------- prune


def stored_bytes(url: str) -> int:
    """What all parts take in a place, each counted once."""
    if url.startswith("file:"):
        paths = [path for path in Path(url[5:]).rglob("*") if path.is_file() and path.name not in ("manifest.json", "lock")]
        return sum({path.stat().st_ino: path.stat().st_size for path in paths}.values())
    with opened(url) as place:
        return sum(meta.size for meta in place.backend.scan("parts/"))  # type: ignore[attr-defined]


def test_prune_keeps_what_any_policy_keeps(run, where, saved) -> None:
    before = stored_bytes(where)
    answer = run("prune", where, "--keep", "latest=1", "--keep", "best=1:loss:max", "--yes")
    marks = {line.split()[0]: line.split()[-1] for line in answer.out.splitlines() if ".state" in line}
    assert marks == {"1": "stays", "2": "goes", "3": "goes", "4": "stays"}
    assert "2 snapshots to stay, 2 to go: 2.1 kB" in answer.out
    assert answer.out.splitlines()[-1] == "removed 2 snapshots, 2.1 kB"
    assert names(where) == [saved[0].name, saved[3].name]
    assert before - stored_bytes(where) == 2 * (saved[1].size - 5000)


def test_a_dry_run_only_tells(run, where, saved) -> None:
    told = run("prune", where, "--keep", "latest=1,best=1:loss", "--dry-run", "--json").json
    assert told["dry_run"] is True
    assert told["keep"] == "latest=1,best=1:loss"
    assert [one["sequence"] for one in told["removed"]] == [1, 2, 3]
    assert [one["sequence"] for one in told["kept"]] == [4]
    assert told["sweep"] == "not done"
    assert len(names(where)) == 4
    assert run("prune", where, "--keep", "latest=1", "-n").out.splitlines()[-1].startswith("1 snapshot to stay, 3 to go: ")
    assert len(names(where)) == 4


def test_the_outcome_as_json(run, where, saved) -> None:
    before = stored_bytes(where)
    told = run("prune", where, "--keep", "latest=3", "--yes", "--json").json
    assert [one["id"] for one in told["removed"]] == [saved[0].id]
    assert told["bytes"] == before - stored_bytes(where)
    assert (told["failed"], told["spared"], told["sweep"]) == ([], None, "done")


def test_where_nobody_can_be_asked_nothing_is_removed(run, where, saved) -> None:
    answer = run("prune", where, "--keep", "latest=1", code=2)
    assert "--yes" in answer.err
    assert len(names(where)) == 4
    assert run("prune", where, "--keep", "latest=9").out.splitlines()[-1] == "4 snapshots to stay, 0 to go"


def test_prune_asks(terminal, where, saved) -> None:
    shown = terminal("prune", where, "--keep", "latest=1", typed="n\n", code=1)
    assert any("Remove 3 snapshots (3." in line for line in shown)
    assert "nothing was removed" in shown[-2]
    assert len(names(where)) == 4
    shown = terminal("prune", where, "--keep", "latest=1", typed="y\n")
    assert shown[-2].startswith("removed 3 snapshots, 3.")
    assert names(where) == [saved[3].name]


@pytest.mark.parametrize("keeps", [[], ["--keep", "last=3"], ["--keep", "latest"], ["--keep", ""]])
def test_a_wrong_policy_is_wrong_usage(run, where, saved, keeps) -> None:
    answer = run("prune", where, *keeps, "--yes", code=2)
    assert answer.err.count("\n") == 1
    assert len(names(where)) == 4


def test_the_last_whole_one_is_spared(run, where, saved) -> None:
    for snapshot in saved[2:]:
        damage(where, snapshot)
    answer = run("prune", where, "--keep", "latest=2", "--yes")
    assert f"spared  {saved[1].name}, as none of the others that stay is whole" in answer.out
    assert names(where) == [snapshot.name for snapshot in saved[1:]]
    told = run("prune", where, "--keep", "latest=2", "--yes", "--json").json
    assert told["spared"]["id"] == saved[1].id
    assert told["removed"] == []


def test_one_that_somebody_reads_is_told_and_stays(run, tmp_path) -> None:
    saved = fill("run", 3)
    with opened("run") as place:
        reading = place.read(saved[0])
        try:
            answer = run("prune", "run", "--keep", "latest=1", "--yes", code=1)
            told = run("prune", "run", "--keep", "latest=1", "--yes", "--json", code=1).json
        finally:
            reading.close()
    assert answer.err == f"not removed: 1 {saved[0].name}: somebody is reading it\n"
    assert "removed 1 snapshot, " in answer.out
    assert [(one["sequence"], one["problem"]) for one in told["failed"]] == [(1, "somebody is reading it")]
    assert names("run") == [saved[0].name, saved[2].name]


def test_what_is_broken_is_neither_counted_nor_removed(run, tmp_path) -> None:
    saved = fill("run", 3)
    part_of(saved[2], "manifest.json").write_text('{"format": "perdure snapshot 1", "id": ')
    answer = run("prune", "run", "--keep", "latest=1", "--yes")
    assert f"ignored  {saved[2].name}: the manifest is damaged" in answer.out
    assert "--broken removes" in answer.out
    assert sorted(names("run")) == sorted([saved[1].name, saved[2].name])


@pytest.mark.parametrize(
    ("policy", "metric"), [("best=1:vall_loss", "vall_loss"), ("latest=3&best=2:note:max,every=2", "note"), ("best=1:lr", "lr")]
)
def test_a_metric_that_no_snapshot_has_removes_nothing(run, where, saved, policy, metric) -> None:
    for words in (["--yes"], ["--dry-run"], ["--yes", "--json"]):
        answer = run("prune", where, "--keep", "latest=1", "--keep", policy, *words, code=2)
        assert f"no snapshot has a number {metric!r}" in answer.err
        assert "There are: 'loss', 'step'." in answer.err
        assert ("Did you mean 'loss'?" in answer.err) == (metric == "vall_loss")
        assert answer.err.count("\n") == 1
        assert answer.out == ""
    assert len(names(where)) == 4
    run("prune", where, "--keep", "best=1:loss,best=1:step:max", "--yes")
    assert names(where) == [saved[3].name]


def test_where_nothing_is_no_metric_is_missing(run, tmp_path) -> None:
    Path("run").mkdir()
    assert run("prune", "run", "--keep", "best=1:loss").out == "0 snapshots to stay, 0 to go\n"


def test_one_that_is_spared_alone_says_so(run, where, saved) -> None:
    answer = run("prune", where, "--keep", "best=0:loss", "--yes")
    assert f"spared  {saved[3].name}, as no other snapshot would stay" in answer.out
    assert names(where) == [saved[3].name]


def test_damaged_manifests_are_removed_when_that_is_asked_for(run, where, saved) -> None:
    broken = damage_manifest(where, saved[1])
    newer = make_newer(where, saved[2])
    before = stored_bytes(where)
    answer = run("prune", where, "--broken", "--dry-run")
    assert f"goes  {broken}: the manifest is damaged" in answer.out
    assert f"ignored  {newer}: " in answer.out
    assert "2 snapshots to stay, 0 to go, and 1 damaged manifest" in answer.out
    assert sorted(names(where)) == sorted([saved[0].name, broken, newer, saved[3].name])
    assert "--yes" in run("prune", where, "--broken", code=2).err
    answer = run("prune", where, "--broken", "--yes")
    assert "\nremoved 1 damaged manifest" in answer.out
    assert names(where) == [newer, saved[0].name, saved[3].name]
    told = run("prune", where, "--broken", "--yes", "--json").json
    assert [(one["name"], one["damaged"], one["removed"]) for one in told["broken"]] == [(newer, False, False)]
    if saved[0].path is not None:
        assert before - stored_bytes(where) == saved[1].size - 5000


def test_damaged_manifests_go_together_with_what_no_policy_keeps(run, where, saved) -> None:
    broken = damage_manifest(where, saved[1], b"")
    before = stored_bytes(where)
    told = run("prune", where, "--keep", "latest=1", "--broken", "--dry-run", "--json").json
    assert [one["sequence"] for one in told["removed"]] == [1, 3]
    assert [(one["name"], one["damaged"], one["removed"], one["failed"]) for one in told["broken"]] == [
        (broken, True, True, None)
    ]
    again = run("prune", where, "--keep", "latest=1", "--broken", "--yes", "--json").json
    assert again == told | {"dry_run": False, "sweep": "done"}
    assert names(where) == [saved[3].name]
    freed = before - stored_bytes(where)
    assert freed == 3 * (saved[0].size - 5000)  # also of the damaged one
    # Of that, nobody knows in a backend what it had; in a folder, the files are there.
    assert again["bytes"] == (freed if saved[0].path is not None else 2 * (saved[0].size - 5000))


def test_without_it_a_damaged_manifest_keeps_what_a_backend_has(run, tmp_path) -> None:
    where = f"sqlite:{tmp_path}/run.db?sync=normal"
    saved = fill(where, 4)
    damage_manifest(where, saved[1])
    before = stored_bytes(where)
    answer = run("prune", where, "--keep", "latest=1", "--yes")
    assert "1 snapshot to stay, 2 to go: 0 B" in answer.out
    assert "no space is freed" in answer.out
    assert stored_bytes(where) == before
    run("prune", where, "--broken", "--yes")
    assert stored_bytes(where) == saved[3].size


def test_prune_asks_before_it_removes_damaged_manifests(terminal, where, saved) -> None:
    broken = damage_manifest(where, saved[1])
    shown = terminal("prune", where, "--broken", typed="n\n", code=1)
    assert any(line.startswith("Remove 1 snapshot with a damaged manifest") for line in shown)
    shown = terminal("prune", where, "--broken", "--keep", "latest=2", typed="n\n", code=1)
    assert any("Remove 1 snapshot and 1 snapshot with a damaged manifest (" in line for line in shown)
    assert broken in names(where)
    terminal("prune", where, "--broken", "--keep", "latest=2", typed="y\n")
    assert names(where) == [saved[2].name, saved[3].name]


def test_what_a_damaged_one_shares_is_not_counted_as_freed(run, tmp_path) -> None:
    where = f"file:{tmp_path}/run"
    saved = fill(where, 2)
    damage_manifest(where, saved[0])
    fill(where, 1, frozen=b"another")
    before = stored_bytes(where)
    told = run("prune", where, "--keep", "latest=1", "--yes", "--json").json
    assert [one["id"] for one in told["removed"]] == [saved[1].id]
    assert told["bytes"] == before - stored_bytes(where) == saved[1].size - 5000


def test_folders_of_other_programs_are_not_taken_for_damaged(run, tmp_path) -> None:
    """Programs of all kinds write a file of this name: web pages, extensions of browsers; and some may know perdure."""
    saved = fill("run", 2, names="kept-%f")
    foreign = {
        "webpage": '{"name": "mine"}',
        "seeds": '{"perdure": 1}',
        "app": '{"name": "perdure-demo", "sequence": 3}',
        "mention": '{"about": "perdure snapshot 1", "components": []}',
        "theirs.state": '{"name": "mine"}',
    }
    for name, text in foreign.items():
        Path("run", name).mkdir()
        Path("run", name, "manifest.json").write_text(text)
    damage_manifest("run", saved[0])
    answer = run("prune", "run", "--broken", "--yes")
    for name in foreign:
        assert f"ignored  {name}: " in answer.out
    assert "rm" in answer.out
    assert sorted(os.listdir("run")) == sorted([".perdure-snapshots", saved[1].name, *foreign])


def test_a_damaged_one_that_somebody_reads_is_told_and_stays(run, tmp_path) -> None:
    saved = fill("run", 2)
    broken = damage_manifest("run", saved[0])
    lock = lock_folder(str(saved[0].path), shared=True)
    try:
        answer = run("prune", "run", "--broken", "--yes", code=1)
        told = run("prune", "run", "--broken", "--yes", "--json", code=1).json
    finally:
        unlock(lock)
    assert answer.err == f"not removed: {broken}: somebody is reading it\n"
    assert [(one["removed"], one["failed"]) for one in told["broken"]] == [(False, "somebody is reading it")]
    assert broken in names("run")


def test_one_that_is_mended_before_the_answer_stays(where, saved) -> None:
    good = part_of(saved[0], "manifest.json").read_bytes() if saved[0].path else b""
    broken = damage_manifest(where, saved[0])
    with opened(where) as place:
        doomed = [entry for entry in place.entries() if isinstance(entry, Broken)]
        assert [entry.name for entry in doomed] == [broken]
        damage_manifest(where, saved[0], good or write_manifest(saved[0]))
        assert _remove_broken(place, doomed) == {}
    assert names(where) == [snapshot.name for snapshot in saved]


def test_a_store_removes_what_has_a_damaged_manifest_by_its_name_alone(where, saved) -> None:
    broken, newer = damage_manifest(where, saved[0]), make_newer(where, saved[1])
    before = stored_bytes(where)
    with StateStore(where, keep=KeepLatest(1)) as store:
        store.cleanup()
        assert sorted(names(where)) == sorted([broken, newer, saved[3].name])
        with pytest.raises(CodecError, match="format 2"):
            store.remove(newer)
        store.remove(broken)
        assert sorted(names(where)) == sorted([newer, saved[3].name])
        damage_manifest(where, saved[1], b"")
        store.remove(saved[1].path or newer)
        with pytest.raises(SnapshotNotFoundError):
            store.remove(broken)
    assert names(where) == [saved[3].name]
    assert stored_bytes(where) == saved[3].size < before


def test_a_damaged_one_elsewhere_is_not_taken_for_one_of_the_same_name(tmp_path) -> None:
    for name in ("here", "there"):
        (snapshot,) = fill(str(tmp_path / name), 1, names="same.state")
        damage_manifest("", snapshot)
    with StateStore(tmp_path / "here") as store:
        with pytest.raises(IntegrityError):
            store.remove(tmp_path / "there" / "same.state")
        assert (tmp_path / "here" / "same.state").exists()
        assert (tmp_path / "there" / "same.state").exists()
        store.remove(tmp_path / "here" / "same.state")
        assert not (tmp_path / "here" / "same.state").exists()


def test_a_store_tells_that_somebody_reads_a_damaged_one(tmp_path) -> None:
    (snapshot,) = fill(str(tmp_path / "run"), 1)
    damage_manifest("", snapshot)
    lock = lock_folder(str(snapshot.path), shared=True)
    try:
        with StateStore(tmp_path / "run") as store, pytest.raises(BackendError, match="somebody is reading"):
            store.remove(snapshot.name)
    finally:
        unlock(lock)
    assert snapshot.path is not None
    assert snapshot.path.exists()


def test_what_killed_processes_left_is_swept(run, tmp_path) -> None:
    fill("run", 1)
    left = Path("run/.perdure-snapshots/draft-dead")
    left.mkdir()
    (left / "part").write_text("x")
    run("prune", "run", "--keep", "latest=1", "-n")
    assert left.exists()
    run("prune", "run", "--keep", "latest=1")
    assert not left.exists()


def test_not_more_is_removed_than_was_agreed_to(where, saved) -> None:
    """Somebody saves between the question and the answer, and with it another one is not among the latest any more."""
    keeper = KeepLatest(3)
    with opened(where) as place:
        plan = clean(place, keeper, dry_run=True)
        assert [snapshot.sequence for snapshot in plan.removed] == [1]
        fill(where, 1)
        outcome = clean(place, _Agreed(keeper, plan))
    assert [snapshot.sequence for snapshot in outcome.removed] == [1]
    assert [snapshot.sequence for snapshot in outcome.kept] == [2, 3, 4, 5]


# --------------------------------------------------------------------------------------------------------------------- diff


def test_diff_tells_what_changed(run, where, saved) -> None:
    answer = run("diff", where, "1", "3", code=1)
    lines = answer.out.splitlines()
    assert lines[0].startswith(f"--- 1  {saved[0].name}  ")
    assert lines[1].startswith(f"+++ 3  {saved[2].name}  ")
    for line in (
        "  ~ step: 100 -> 300",
        "  ~ loss: 1.0 -> 0.3333333333333333",
        "  ~ config.deep[0]: 1 -> 3",
        "~ config (value)",
        f"      ~ config.lr: 0.1 -> {0.1 / 3}",
        "~ model (files)",
        "  ~ model/weights.bin  1.0 kB",
        "    1 part unchanged",
    ):
        assert line in lines
    assert not any("frozen" in line for line in lines)


def test_equal_snapshots_are_0(run, where, saved) -> None:
    assert run("diff", where, "2", saved[1].name).out.splitlines()[-1] == "no difference"
    told = run("diff", where, "2", "2", "--json").json
    assert (told["equal"], told["same"]) == (True, True)


def test_the_same_state_with_other_metadata_is_told(run, where) -> None:
    with StateStore(where) as store:
        store.register_value("v", [1])
        store.save_state({"step": 1})
        store.save_state({"step": 2, "new": None})
    told = run("diff", where, "--json", code=1).json
    assert (told["equal"], told["same"]) == (False, True)
    lines = run("diff", where, code=1).out.splitlines()
    assert lines[2:] == ["metadata", "  ~ step: 1 -> 2", "  + new: None", "1 component unchanged"]


def test_one_argument_or_none_is_compared_with_the_one_before(run, where, saved) -> None:
    def numbers(*words: str) -> tuple[int, int]:
        told = run("diff", where, *words, "--json", code=1).json
        return told["old"]["sequence"], told["new"]["sequence"]

    assert numbers() == numbers("latest") == numbers("4") == numbers("previous", "latest") == (3, 4)
    assert numbers("3") == numbers("previous") == (2, 3)
    assert numbers("latest", "previous") == (4, 3)
    assert "there is no snapshot before this one" in run("diff", where, "1", code=1).err


def test_components_and_parts_that_come_and_go(run, where) -> None:
    with StateStore(where) as store:
        store.register("model", files := Files(a=b"a", b=b"b"))
        store.register_value("old", 1)
        store.save_state()
        store.unregister("old")
        store.register_value("new", 1)
        del files.files["a"]
        files.files["c"] = b"ccc"
        store.save_state()
    lines = run("diff", where, code=1).out.splitlines()
    for line in ("+ new (value)", "- old (value)", "~ model (files)", "  - model/a.bin  1 B", "  + model/c.bin  3 B"):
        assert line in lines
    told = run("diff", where, "--json", code=1).json
    assert {one["name"]: one["kind"] for one in told["components"]} == {"model": "changed", "new": "added", "old": "removed"}


def test_long_differences_are_cut_and_say_so(run, where) -> None:
    with StateStore(where) as store:
        value = store.register_value("v", list(range(1000)))
        store.save_state()
        value.value[:] = [-n - 1 for n in range(1000)]
        store.save_state()
    lines = run("diff", where, code=1).out.splitlines()
    assert len(lines) < 40
    assert lines[-1].strip().startswith("... and 980 more")
    (component,) = run("diff", where, "--json", code=1).json["components"]
    assert component["parts"][0]["omitted"] + len(component["parts"][0]["changes"]) == 1000


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return os.mkdir, (f"{os.getcwd()}/evil{self.number}",)


def test_no_code_is_run(run, tmp_path) -> None:
    with StateStore("run", trusted=True) as store:
        value = store.register_value("v", Evil(1))
        store.save_state()
        value.value = Evil(2)
        store.save_state()
    answer = run("diff", "run", code=1)
    assert "~ v.pkl" in answer.out
    run("diff", "run", "--json", code=1)
    run("snapshots", "run", "--verify")
    run("restore", "run", "out")
    assert [name for name in os.listdir() if name.startswith("evil")] == []


def test_a_damaged_part_is_different_and_says_why(run, where, saved) -> None:
    damage(where, saved[3], "config.pkl")
    lines = run("diff", where, code=1).out.splitlines()
    at = next(number for number, line in enumerate(lines) if "config.pkl" in line)
    assert "damaged" in lines[at + 1]
