"""How deeply lists and maps nest in msgpack bytes, told without building anything."""

from __future__ import annotations

from typing import Final

# Every byte that can begin a list or a map: fixmap, fixarray, array16, array32, map16, map32.
_BEGINNINGS: Final = bytes((*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF))

# first byte -> length of a scalar with its data; or, as (width, extra), of a length field and what else the head holds
_FIXED: Final = {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9} | {
    0xD4 + i: 2 + 2**i for i in range(5)
}
_SIZED: Final = {
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),  # bytes
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),  # extensions
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),  # text
}  # fmt: skip


def nests_deeper(data: bytes, most: int) -> bool:
    """Tell whether lists and maps in `data` nest more than `most` levels; extensions count as scalars.

    Cost: a nanosecond a byte, unless many bytes look like lists; then a quarter of a microsecond for each element.
    """
    if len(data) <= most or len(data) - len(data.translate(None, _BEGINNINGS)) <= most:
        return False
    left = [1]  # for each open list or map, how many elements are still to come
    at = 0
    while at < len(data):
        while left and left[-1] == 0:
            left.pop()
        if not left:
            return False  # what follows is never read
        left[-1] -= 1
        first = data[at]
        if first < 0x80 or first >= 0xE0:
            at += 1
        elif first < 0x90:
            left.append(2 * (first & 0x0F))
            at += 1
        elif first < 0xA0:
            left.append(first & 0x0F)
            at += 1
        elif first < 0xC0:
            at += 1 + (first & 0x1F)
        elif first in _FIXED:
            at += _FIXED[first]
        elif first in _SIZED:
            width, extra = _SIZED[first]
            at += 1 + width + extra + int.from_bytes(data[at + 1 : at + 1 + width], "big")
        elif first >= 0xDC:
            width = 4 if first & 1 else 2
            size = int.from_bytes(data[at + 1 : at + 1 + width], "big")
            left.append(size if first < 0xDE else 2 * size)
            at += 1 + width
        else:
            at += 1  # nil, true, false, and the byte that is never used
        if len(left) - 1 > most:
            return True
    return False
