"""Promises about keys: every legal one works and stays itself, every other one is refused before anything happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ..errors import InvalidKeyError
from ..keys import MAX_SEGMENT, SAFE_CHARS
from ..protocol import ABSENT, Backend, ETag
from .kit import Kit, contents, refused

HOSTILE_KEYS: list[Any] = [
    "", ".", "..", "../x", "a/../b", "a/..", "./a", "a/./b", "/abs", "/", "//", "a//b", "a/", "../../../../etc/passwd",
    "a\0b", "\0", "a\nb", "a\n", "\n", "a\r", "a\tb", " ", " a", "a ", "a b", "\x7f", "\x1b[31m",
    "\\", "a\\b", "..\\x", "C:\\x", "C:/x", "c:", "a:b", "a*", "a?", "a%2fb", "%2e%2e", "a#b", "a&b", "a+b", "a,b", "a;b",
    "a'b", 'a"b', "a|b", "a<b", "a>b", "$HOME", "`a`", "{a}", "[a]", "a@b", "a!", "a^b",
    "\u0430", "\uff41", "\u00e9", "e\u0301", "\u2024\u2024/x", "\uff0e\uff0e", "\u2215", "a\u200bb", "\ufeffa",
    "\u0661", "\u00df", "\U0001f40d",
    "a\ud800", "x" * (MAX_SEGMENT + 1), "a/" + "x" * (MAX_SEGMENT + 1) + "/b", "x" * 100_000, "a/" * 2000,
    None, 1, 1.5, True, b"a", bytearray(b"a"), ("a",), ["a"], {"a": 1}, object(),
]  # fmt: skip

HOSTILE_PREFIXES: list[Any] = [
    "a", "a/b", "/", "//", "/a/", "a//", "./", "../", "a/../", "a/./", "a\\", "a\0/", "a\n/", "\n", "a/\n", "*/", "\u0430/",
    "x" * (MAX_SEGMENT + 1) + "/", None, 1, b"", b"a/", ("a",), ["a/"],
]  # fmt: skip

# Legal, and each of them special somewhere: to a shell, to Windows, to a sync tool, to whoever writes temporary files.
ODD_KEYS = [
    "con", "nul.txt", "aux", "COM1", "prn/lpt9.log", "a.", "a..", "a...", "...", ".hidden", "-rf", "--help", "-", "_", "~",
    "~root", "=", "(1)", "()", "a(1)", "a~", "a~1", "a.tmp", "tmp", ".tmp", "a.lock", ".lock", "a.pkl", "a.json",
    ".git/config", ".perdure", ".perdure/x", "perdure.json", "_meta", "a..b", "..a", "a/..b", "a/...", "0", "00", "1e3",
    "None", "__init__.py", "index", "a=b", "sqlite_master", ".DS_Store", "Thumbs.db", ".fuse_hidden0001", ".nfs0001",
    "lost-found", "a.part", "x.crdownload",
]  # fmt: skip


def every_call(backend: Backend, key: Any) -> list[tuple[str, Callable[[], object]]]:
    """All that can be asked about one key."""
    return [
        ("get", lambda: backend.get(key)),
        ("get if_none_match", lambda: backend.get(key, if_none_match=ETag("x"))),
        ("head", lambda: backend.head(key)),
        ("contains", lambda: backend.contains(key)),
        ("put", lambda: backend.put(key, b"bad")),
        ("create", lambda: backend.put(key, b"bad", if_match=ABSENT)),
        ("swap", lambda: backend.put(key, b"bad", if_match=ETag("x"))),
        ("delete", lambda: backend.delete(key)),
        ("delete if_match", lambda: backend.delete(key, if_match=ETag("x"))),
        ("get_many", lambda: backend.get_many([key])),
        ("delete_many", lambda: backend.delete_many([key])),
    ]


class Names(Kit):
    """Which keys work, and that they do not touch each other."""

    def _works(self, backend: Backend, key: str) -> None:
        etag = backend.put(key, key.encode(), if_match=ABSENT)
        assert backend.get(key)[:2] == (key.encode(), etag), key
        assert backend.head(key)[:3] == (key, etag, len(key)), key
        backend.put(key, key.encode(), if_match=etag)

    def test_hostile_keys_are_refused_by_every_call(self, handle: Backend) -> None:
        if self.keeps:
            handle.put("a", b"kept")
        for key in HOSTILE_KEYS:
            for name, call in every_call(handle, key):
                error = refused(InvalidKeyError, f"{name} of the key {key!r:.60}", call)
                assert len(str(error)) < 2000
            if key.__hash__ is not None:
                refused(InvalidKeyError, f"put_many of the key {key!r:.60}", handle.put_many, {key: b"bad"})
        assert contents(handle) == ({"a": b"kept"} if self.keeps else {})

    def test_hostile_prefixes_are_refused_by_the_call_itself(self, handle: Backend) -> None:
        for prefix in HOSTILE_PREFIXES:
            refused(InvalidKeyError, f"scan of the prefix {prefix!r:.60}", handle.scan, prefix)
            refused(InvalidKeyError, f"keys of the prefix {prefix!r:.60}", handle.keys, prefix)

    def test_a_key_and_keys_below_it_coexist(self, backend: Backend) -> None:
        keys = ["a/b/c", "a", "a.b/c", "a/b", "a-", "a/b.c", "a.b", "ab/c", "a=/b", "a/a/a/a"]
        for key in keys:
            self._works(backend, key)
        assert contents(backend) == {key: key.encode() for key in keys}
        for gone in ("a", "a/b/c", "a.b"):
            backend.delete(gone)
            keys.remove(gone)
            assert contents(backend) == {key: key.encode() for key in keys}, f"after delete of {gone}"
        for key in ("a", "a/b/c", "a.b"):
            self._works(backend, key)

    def test_a_key_is_absent_where_only_keys_below_it_are_present(self, backend: Backend) -> None:
        backend.put("a/b/c", b"1")
        for key in ("a", "a/b", "a/b/c/d"):
            assert not backend.contains(key)
            backend.delete(key)
        assert contents(backend) == {"a/b/c": b"1"}

    def test_prefixes_show_what_is_below_and_nothing_else(self, backend: Backend) -> None:
        keys = {"a", "a/b", "a/c", "a/b/c", "a.b/c", "ab/c", "aa", "A/b", "b/a/b", "a-/b", "a/B"}
        backend.put_many(dict.fromkeys(keys, b"x"))
        for prefix in ("", "a/", "a/b/", "a.b/", "ab/", "b/", "b/a/", "A/", "a-/", "c/", "aa/", "a/b/c/"):
            below = {key for key in keys if key.startswith(prefix)}
            assert sorted(backend.keys(prefix)) == sorted(below), prefix
            assert sorted(meta.key for meta in backend.scan(prefix)) == sorted(below), prefix
        assert {meta.key for meta in backend.scan()} == keys  # no argument means everything

    def test_keys_that_differ_in_case_are_different(self, backend: Backend) -> None:
        keys = ["a", "A", "ab", "aB", "Ab", "AB", "Dir/x", "dir/x", "DIR/x", "dir/X", "a(u)", "A(U)"]
        for key in keys:
            self._works(backend, key)
        assert contents(backend) == {key: key.encode() for key in keys}
        assert set(backend.keys("dir/")) == {"dir/x", "dir/X"}
        backend.delete("A")
        assert backend.get("a").data == b"a"

    def test_keys_that_are_special_elsewhere_are_not_special_here(self, backend: Backend) -> None:
        for key in ODD_KEYS:
            self._works(backend, key)
            self._works(backend, f"below/{key}")
            self._works(backend, f"{key}/below")
        expected = {spelled for key in ODD_KEYS for spelled in (key, f"below/{key}", f"{key}/below")}
        assert sorted(backend.keys()) == sorted(expected)
        for key in ODD_KEYS:
            assert backend.get(key).data == key.encode()
            assert backend.get(f"{key}/below").data == f"{key}/below".encode()

    def test_every_allowed_character(self, backend: Backend) -> None:
        letters = sorted(SAFE_CHARS)
        keys = (
            [f"x{char}" for char in letters]
            + [f"{char}x" for char in letters]
            + [f"{char}/x" for char in letters if char != "."]
        )
        keys += ["".join(letters), "".join(reversed(letters)), "/".join(char * 3 for char in letters)]
        for key in dict.fromkeys(keys):
            backend.put(key, key.encode(), if_match=ABSENT)
        assert contents(backend) == {key: key.encode() for key in keys}

    def test_the_longest_segment_works_and_a_longer_one_is_refused(self, backend: Backend) -> None:
        longest = "x" * self.longest_segment
        for key in (longest, f"a/{longest}", f"{longest}/a"):
            self._works(backend, key)
        self._refused_or_works(backend, "x" * (self.longest_segment + 1), must_refuse=True)
        self._refused_or_works(backend, "x" * (self.longest_segment + 1) + "/a", must_refuse=True)

    @pytest.mark.parametrize("char", ["A", ".", "=", "(", "~", "-", "aB"])
    def test_long_segments_of_any_character_work_or_are_refused(self, backend: Backend, char: str) -> None:
        for length in (MAX_SEGMENT, 200, 150, 127, 100, 64):
            self._refused_or_works(backend, (char * length)[:length])

    def test_the_longest_key_works_and_a_longer_one_is_refused(self, backend: Backend) -> None:
        def long_key(length: int) -> str:
            part = "x" * min(self.longest_segment, 50) + "/"
            key = (part * (length // len(part) + 1))[:length]
            return key[:-1] + "y" if key.endswith("/") else key

        if self.longest_key is None:
            self._refused_or_works(backend, long_key(3000))
        else:
            self._works(backend, long_key(self.longest_key))
            self._refused_or_works(backend, long_key(self.longest_key + 1), must_refuse=True)
        self._refused_or_works(backend, "/".join("abc" * 40))
        self._refused_or_works(backend, long_key(20_000))

    def _refused_or_works(self, backend: Backend, key: str, *, must_refuse: bool = False) -> None:
        before = set(backend.keys())
        try:
            backend.put(key, b"1", if_match=ABSENT)
        except InvalidKeyError:
            # Then every call refuses it: "absent" would be a lie about a key that can never be present.
            for name, call in every_call(backend, key):
                refused(InvalidKeyError, f"{name} of the key {key:.60} ({len(key)} characters)", call)
            assert set(backend.keys()) == before
        else:
            assert not must_refuse, f"{key:.60} ({len(key)} characters) should have been refused"
            assert backend.get(key).data == b"1"
            assert set(backend.keys()) == before | {key}
            backend.delete(key)
            assert set(backend.keys()) == before
