"""What the server runs in one step each, and how a value lies there.

A value is a hash. Its field `m` tells all but the bytes, as text: `ETAG SIZE TIME`, the time by the server's clock, so that
there is one clock for all machines. `v` holds the bytes, and `u`, where it is set, when the value was last read.

*Receipts.* The server cannot be asked what became of a request whose answer got lost: a failed condition may mean that it was
we who won, and a value that is not ours may have taken the place of ours. So each connection has a key of its own, its
receipt, in which every write leaves its number in the same step that changes the value. Whoever lost an answer reads there
which of its writes were carried out, and in the same step closes the receipt: a request that was held up on its way and comes
only now finds it closed and does nothing. So it may be sent again. Receipts expire by themselves. When one is missing that
was there, evicted or lost in a restart, the outcome is unknown. (A server that evicts a *closed* one while the request is still
on its way would be fooled by it; nothing here can help that.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

RECEIPT_LASTS: Final = 600  # seconds after the last write of its connection
_CLOSED_LASTS: Final = 3600  # longer than any request is under way


class Script(NamedTuple):
    """A text in Lua and the name the server has for it once it was loaded."""

    text: bytes
    name: bytes

    def command(self, names: Sequence[bytes], arguments: Sequence[bytes]) -> list[bytes]:
        """The command that runs it, on a server that has it loaded."""
        return [b"EVALSHA", self.name, b"%d" % len(names), *names, *arguments]


def _script(text: str) -> Script:
    lines = text.replace("RECEIPT_MS", f"{RECEIPT_LASTS}000").replace("CLOSED_MS", f"{_CLOSED_LASTS}000").strip().encode()
    return Script(lines, hashlib.sha1(lines, usedforsecurity=False).hexdigest().encode())


# Both change all of the values or, when they return another word than "done" or an error, nothing. A condition is "", "absent"
# or an ETag, and is of the first value. An error about one of the values ends in its number.

PUT: Final = _script("""
local receipt, settings = KEYS[1], KEYS[2]
local number, condition, ttl, settled = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local seen = redis.call('GET', receipt)
if seen and string.sub(seen, 1, 1) == 'c' then return redis.error_reply('TRYAGAIN the receipt is closed') end
if settled == '1' and redis.call('HLEN', settings) == 0 then return 'unsettled' end
local there = {}
for i = 3, #KEYS do
  there[i] = redis.pcall('HGET', KEYS[i], 'm')
  if type(there[i]) == 'table' then return redis.error_reply(there[i].err .. ' (value ' .. i - 2 .. ')') end
  if not there[i] and redis.call('EXISTS', KEYS[i]) == 1 then
    return redis.error_reply('WRONGTYPE a hash of another program (value ' .. i - 2 .. ')')
  end
end
if condition == 'absent' then
  if there[3] then return 'there' end
elseif condition ~= '' and (not there[3] or string.sub(there[3], 1, 16) ~= condition) then
  return 'changed'
end
local now = redis.call('TIME')
for i = 3, #KEYS do
  local etag, data = ARGV[2 * i - 1], ARGV[2 * i]
  local about = string.format('%s %d %s.%06d', etag, #data, now[1], tonumber(now[2]))
  redis.call('HSET', KEYS[i], 'm', about, 'v', data)
  if ttl ~= '0' then
    redis.call('PEXPIRE', KEYS[i], ttl)
  elseif there[i] then
    redis.call('PERSIST', KEYS[i])
  end
end
redis.call('SET', receipt, number, 'PX', RECEIPT_MS)
return 'done'
""")

DELETE: Final = _script("""
local receipt, number, condition = KEYS[1], ARGV[1], ARGV[2]
local seen = redis.call('GET', receipt)
if seen and string.sub(seen, 1, 1) == 'c' then return redis.error_reply('TRYAGAIN the receipt is closed') end
local found = {}
for i = 2, #KEYS do
  local there = redis.pcall('HGET', KEYS[i], 'm')
  if type(there) == 'table' then return redis.error_reply(there.err .. ' (value ' .. i - 1 .. ')') end
  if there then
    if condition ~= '' and string.sub(there, 1, 16) ~= condition then return 'changed' end
    table.insert(found, KEYS[i])
  elseif redis.call('EXISTS', KEYS[i]) == 1 then
    return redis.error_reply('WRONGTYPE a hash of another program (value ' .. i - 1 .. ')')
  end
end
if #found == 0 then return 'gone' end
for _, value in ipairs(found) do redis.call('UNLINK', value) end
redis.call('SET', receipt, number, 'PX', RECEIPT_MS)
return 'done'
""")

# The number of the last write that was carried out; none with a number up to the one given will be from here on.
CLOSE: Final = _script("""
local seen = redis.call('GET', KEYS[1])
if seen and string.sub(seen, 1, 1) == 'c' then return string.sub(seen, 2) end
if seen and tonumber(seen) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], 'c' .. seen, 'PX', CLOSED_MS) end
return seen
""")

# The bytes only where they are not the ones the caller has.
GET_CHANGED: Final = _script("""
local there = redis.call('HGET', KEYS[1], 'm')
if there and string.sub(there, 1, 16) == ARGV[1] then return {there} end
return redis.call('HMGET', KEYS[1], 'm', 'v')
""")

# Of what is there only, and never back in time; the time to live stays as it is.
MARK_USED: Final = _script("""
if redis.call('HEXISTS', KEYS[1], 'm') == 0 then return 0 end
local before = redis.call('HGET', KEYS[1], 'u')
if before and tonumber(before) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'u', ARGV[1])
return 1
""")

# All of them or, when one differs from what is there, none; what is there afterwards.
SETTLE: Final = _script("""
for i = 1, #ARGV, 2 do
  local there = redis.call('HGET', KEYS[1], ARGV[i])
  if there and there ~= ARGV[i + 1] then return redis.call('HGETALL', KEYS[1]) end
end
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
return redis.call('HGETALL', KEYS[1])
""")

SCRIPTS: Final = (PUT, DELETE, CLOSE, GET_CHANGED, MARK_USED, SETTLE)
