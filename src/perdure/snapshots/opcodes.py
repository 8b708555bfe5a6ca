"""Which of pickle's instructions a file holds, told without following any.

A name that is refused stops the worst, but not all: `BUILD` writes into whatever was made before, and there are types (those
of numpy) which crash, or run code, when they are given a state that they never had. So what comes from others may only make
plain data and call what is on the list. That is all of what pickling plain data writes, in protocol 5.
"""

from __future__ import annotations

import re
from typing import Final

from ..errors import IntegrityError

__all__ = ["makes_objects"]

# Text that is shorter than 256 bytes, which most is: the length, and that many bytes.
_SHORT: Final = b"|".join(b"%s.{%d}" % (re.escape(bytes([size])), size) for size in range(256))

# Possessive, as there is never another way to read them, and millions of ways to remember otherwise.
_run = re.compile(
    rb"(?s:"
    rb"[(01NRae)t\]}su\x85-\x89\x8f-\x91\x93\x94]"  # without an operand; no BUILD, NEWOBJ, INST, OBJ, DUP
    rb"|[Kh].|M..|[Jj].{4}|G.{8}"  # numbers, and references to what was made before
    rb"|\x8c(?:" + _SHORT + rb"))*+"
).match

# The width of the length that follows, and then that many bytes: text, bytes, bytearrays, and long integers.
_SIZED: Final = {0x58: 4, 0x8D: 8, 0x43: 1, 0x42: 4, 0x8E: 8, 0x96: 8, 0x8A: 1, 0x8B: 4}

# What makes objects of any class: NEWOBJ, NEWOBJ_EX, BUILD, and the classes that `copyreg` gave numbers to.
_OBJECTS: Final = {0x81: 1, 0x92: 1, 0x62: 1, 0x82: 2, 0x83: 3, 0x84: 5}

_PROTOCOL: Final = b"\x80\x05"
_FRAME: Final = 0x95
_STOP: Final = 0x2E


def makes_objects(data: bytes | memoryview) -> bool:
    """Tell whether a pickle does more than to make plain data and to call functions.

    Args:
        data: The whole pickle.

    Raises:
        IntegrityError: It is cut short, goes on after its end, or has instructions that protocol 5 does not need. Among them
            are those that name a place to remember a value at, with which few bytes can ask for any amount of memory.

    Cost: as long as unpickling, which makes 30 to 250 MB/s.
    """
    found = False
    at = len(_PROTOCOL)
    if data[:at] != _PROTOCOL:
        raise IntegrityError("it is not a pickle of protocol 5")
    # Frames end where an instruction ends, and hold no others: a reader may take what is across their ends for something else.
    end, framed = len(data), False
    while True:
        match = _run(data, at, end)
        at = match.end() if match else at
        if framed and at == end:
            end, framed = len(data), False
            continue
        if at >= end:
            raise IntegrityError("the pickle is cut short")
        opcode = data[at]
        if opcode in _SIZED:
            operand = at + 1 + _SIZED[opcode]
            at = operand + int.from_bytes(data[at + 1 : operand], "little")
        elif opcode in _OBJECTS:
            found = True
            at += _OBJECTS[opcode]
        elif opcode == _FRAME and not framed:
            at, framed = at + 9, True
            end = at + int.from_bytes(data[at - 8 : at], "little")
        elif opcode == _STOP and at + 1 == len(data):
            return found
        else:
            raise IntegrityError(f"the pickle holds what perdure never writes: {opcode:#04x} at byte {at:,}")
        if at > end or end > len(data):
            raise IntegrityError("the pickle is cut short, or in frames of other lengths")
