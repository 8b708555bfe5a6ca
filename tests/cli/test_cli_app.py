"""What all commands have in common: exit codes, one-line errors, pipes, signals, terminals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import perdure

PERDURE = [sys.executable, "-m", "perdure"]


@pytest.mark.smoke
def test_version(process):
    assert process("--version").out == f"perdure {perdure.__version__}\n"


@pytest.mark.parametrize("command", ["ls", "get", "set", "rm", "cp", "info", "doctor", "demo"])
def test_help(run, command):
    listing = run("--help").out
    assert command in listing
    assert "..." not in listing.partition("Commands:")[2]  # click cuts what is too long
    assert "--debug" in run(command, "--help").out


def test_no_command_is_wrong_usage(run):
    answer = run(code=2)
    assert "Usage" in answer.err
    assert answer.out == ""


@pytest.mark.parametrize(
    "words",
    [["sl"], ["ls", "--nonsense"], ["get"], ["get", "x"], ["ls", "a", "b"], ["ls", "nosuch:x"], ["ls", "file:x?sink=1"]],
)
def test_wrong_usage_is_one_line_and_2(run, words):
    answer = run(*words, code=2)
    assert answer.err.startswith("perdure: ")
    assert answer.err.count("\n") == 1
    assert answer.out == ""


def test_a_command_is_suggested(run):
    assert "'ls'" in run("sl", code=2).err


def test_a_place_that_fails_is_3(run):
    Path("file").write_text("x")
    answer = run("ls", "file", code=3)
    assert "not a folder" in answer.err
    assert answer.err.count("\n") == 1


def test_debug_shows_the_traceback(process):
    assert "Traceback" not in process("ls", "nothing", code=3).err
    assert "Traceback" in process("ls", "nothing", "--debug", code=3).err
    assert "Traceback" in process("--debug", "ls", "nothing", code=3).err
    assert "Traceback" in process("ls", "nothing", code=3, PERDURE_DEBUG="1").err


def test_without_click_or_rich_it_says_what_to_type():
    for missing in ("click", "rich"):
        code = f"import sys; sys.modules[{missing!r}] = None; from perdure.__main__ import main; main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done
        assert done.stderr.count("\n") == 1
        assert "pip install 'perdure[cli]'" in done.stderr


def test_a_closed_pipe_is_silent(tmp_path):
    with perdure.open(tmp_path / "d", sync="normal") as d:
        d.update({f"{'k' * 200}{n}": n for n in range(1000)})  # more than a pipe holds
    lister = subprocess.Popen([*PERDURE, "ls", "d"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert lister.stdout.readline()
    lister.stdout.close()
    assert lister.stderr.read() == b""
    assert lister.wait() == 0
    lister.stderr.close()


@pytest.mark.parametrize("words", [["info", "d"], ["doctor", "d"]])
def test_a_closed_pipe_is_silent_where_lines_are_styled(tmp_path, words):
    with perdure.open(tmp_path / "d", sync="normal") as d:
        d["a"] = 1
    reader, writer = os.pipe()
    os.close(reader)  # before the first line, so that it is no race
    done = subprocess.run([*PERDURE, *words], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("words", [["ls", "d"], ["get", "d", "a"], ["info", "d"], ["--help"]])
def test_output_to_a_full_disk_is_one_line_and_3(tmp_path, words):
    with perdure.open(tmp_path / "d", sync="normal") as d:
        d["a"] = 1
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PERDURE, *words], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert "output" in done.stderr
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the syntax of a POSIX shell")
@pytest.mark.parametrize(
    ("command", "code"), [("ls d >&-", 0), ("info d >&-", 0), ("ls no >&- 2>&-", 3), ("set d b - <&-", 0), ("get d a 2>&-", 0)]
)
def test_closed_streams_do_no_harm(tmp_path, command, code):
    with perdure.open(tmp_path / "d", sync="normal") as d:
        d["a"] = 1
    line = f"exec '{sys.executable}' -m perdure {command}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == ("1\n" if command.startswith("get") else "")


def test_ctrl_c_is_130(tmp_path):
    writer = subprocess.Popen(
        [*PERDURE, "--debug", "set", "d", "k", "-"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a shell runs in the background
    )
    # It reads until the end of its input, which does not come: whenever the signal arrives, it is before that.
    writer.stdin.write(b"x" * (1 << 20))
    writer.stdin.flush()  # a megabyte does not fit into the pipe, so by now it is reading
    writer.send_signal(signal.SIGINT)
    _, error = writer.communicate()
    assert writer.returncode == 130
    assert error == b"perdure: interrupted\n"
    assert not (tmp_path / "d").exists()


def test_no_colours_but_on_a_terminal(process, tmp_path):
    with perdure.open(tmp_path / "d") as d:
        d["k"] = 1
    assert "\x1b" not in process("info", "d").out
    assert "\x1b" not in process("info", "d", FORCE_COLOR="").out


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal(tmp_path, variables, coloured):
    with perdure.open(tmp_path / "d") as d:
        d["k"] = "\x1b[2Jevil"
    shown = on_terminal([*PERDURE, "get", "d", "k"], tmp_path, variables)
    assert shown.strip() == "\\x1b[2Jevil"
    shown = on_terminal([*PERDURE, "doctor", "d"], tmp_path, variables)
    assert "healthy" in shown
    assert ("\x1b[1;32m" in shown) is coloured


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_whole_prefix_is_removed_after_yes_only(tmp_path):
    with perdure.open(tmp_path / "d") as d:
        d["a", "b"] = 1
        command = [*PERDURE, "rm", "d", "--prefix", "a"]
        shown = on_terminal(command, tmp_path, {}, typed="n\n", code=1)
        assert "Remove 1 value from" in shown
        assert shown.rstrip().endswith("nothing was removed")
        assert ("a", "b") in d
        assert "removed 1 value" in on_terminal(command, tmp_path, {}, typed="y\n")
        assert ("a", "b") not in d


def on_terminal(command: list[str], folder: Path, variables: dict[str, str], typed: str = "", code: int = 0) -> str:
    """Run a command with a terminal for all its streams, and return what it shows."""
    outside, inside = os.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        command, cwd=folder, stdin=inside, stdout=inside, stderr=inside, env=environment | {"TERM": "xterm"} | variables
    )
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
    assert child.wait() == code
    os.close(outside)
    return shown.decode()
