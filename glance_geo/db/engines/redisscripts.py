# SPDX-License-Identifier: Apache-2.0
"""The Lua scripts that ``redis.py`` runs on the server.

``KEYS[1]`` is the prefix in braces. What else a script touches has the same
hash tag, so that a Cluster has it in the same slot.
"""

import dataclasses
import hashlib


@dataclasses.dataclass(frozen=True)
class Script:
    """A script, and the name under which the server caches it."""

    text: str

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(),
                            usedforsecurity=False).hexdigest()


# The server's run id names the data's life: it changes with each restart and
# each failover, after which the last puts may be missing.
_LIFE = """
local function life()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
         .. '.' .. (redis.call('HGET', KEYS[1] .. ':n', 'life') or 0)
end
"""

LIFE = Script(_LIFE + 'return life()')

RENEW_LIFE = Script("return redis.call('HINCRBY', KEYS[1] .. ':n', 'life', 1)")

GET = Script("""
local found = {}
for i, key in ipairs(ARGV) do
  local entry = redis.call('HMGET', KEYS[1] .. ':e:' .. key, 'v', 's', 't')
  found[i] = entry[3] and entry or {}
end
return found
""")

# ARGV: key, value, token, positions, numbered, life.
# A position: index key, member up to the stamp, what follows the stamp.
PUT = Script(_LIFE + """
local entry = KEYS[1] .. ':e:' .. ARGV[1]
local present = redis.call('HMGET', entry, 't', 'x')
if (present[1] or '') ~= ARGV[3] then return -1 end
if ARGV[6] ~= '' and ARGV[6] ~= life() then return -1 end
local number = 0
if ARGV[5] == '1' then
  number = redis.call('HINCRBY', KEYS[1] .. ':n', 'put', 1)
end
local token = redis.call('HINCRBY', KEYS[1] .. ':n', 'token', 1)
local gone = {}
if present[2] then
  for _, at in ipairs(cmsgpack.unpack(present[2])) do
    gone[at[1] .. '\\0' .. at[2]] = at
  end
end
local terms = {}
for i, at in ipairs(cmsgpack.unpack(ARGV[4])) do
  local member = at[2]
  if at[3] ~= '' then
    member = member .. string.format('%016x', number) .. at[3]
  end
  terms[i] = {at[1], member}
  local name = at[1] .. '\\0' .. member
  if gone[name] then
    gone[name] = nil
  else
    redis.call('ZADD', at[1], 0, member)
    redis.call('ZADD', KEYS[1] .. ':indexes', 0, at[1])
  end
end
for _, at in pairs(gone) do
  if redis.call('ZREM', at[1], at[2]) == 1
      and redis.call('EXISTS', at[1]) == 0 then
    redis.call('ZREM', KEYS[1] .. ':indexes', at[1])
  end
end
redis.call('HSET', entry, 'v', ARGV[2], 's', number, 't', token,
           'x', cmsgpack.pack(terms))
if number > 0 then
  redis.call('PUBLISH', KEYS[1] .. ':puts', number)
end
return number
""")

DELETE = Script("""
local entry = KEYS[1] .. ':e:' .. ARGV[1]
local present = redis.call('HMGET', entry, 't', 'x')
if ARGV[2] ~= '' and (present[1] or '') ~= ARGV[2] then return -1 end
if present[2] then
  for _, at in ipairs(cmsgpack.unpack(present[2])) do
    redis.call('ZREM', at[1], at[2])
    if redis.call('EXISTS', at[1]) == 0 then
      redis.call('ZREM', KEYS[1] .. ':indexes', at[1])
    end
  end
  redis.call('DEL', entry)
end
return 0
""")

_RANGE = """
local function range(at)
  if ARGV[at + 3] == '1' then
    return redis.call('ZREVRANGEBYLEX', ARGV[at], ARGV[at + 2], ARGV[at + 1],
                      'LIMIT', 0, ARGV[at + 4])
  end
  return redis.call('ZRANGEBYLEX', ARGV[at], ARGV[at + 1], ARGV[at + 2],
                    'LIMIT', 0, ARGV[at + 4])
end
"""

# ARGV: how many ranges, five arguments for each, then keys.
LOOK = Script(_RANGE + """
local ranges = tonumber(ARGV[1])
local positions, entries = {}, {}
for i = 1, ranges do positions[i] = range(5 * i - 3) end
for i = 5 * ranges + 2, #ARGV do
  local entry = redis.call('HMGET', KEYS[1] .. ':e:' .. ARGV[i],
                           'v', 's', 't')
  entries[#entries + 1] = entry[3] and entry or {}
end
return {positions, entries}
""")

FETCH = Script(_RANGE + """
local all = {}
for at = 1, #ARGV, 5 do
  local found = {}
  for _, member in ipairs(range(at)) do
    local key = string.match(member, '%z([^%z]*)$')
    local entry = redis.call('HMGET', KEYS[1] .. ':e:' .. key, 'v', 's', 't')
    if entry[3] then
      found[#found + 1] = {member, entry[1], entry[2], entry[3]}
    end
  end
  all[#all + 1] = found
end
return all
""")

INDEXES = Script("return redis.call('ZRANGEBYLEX', KEYS[1] .. ':indexes', "
                 "'[' .. ARGV[1], '(' .. ARGV[1] .. '\\255')")

LAST = Script("return tonumber(redis.call('HGET', KEYS[1] .. ':n', 'put') "
              "or 0)")

# In steps, so that no other user of the server waits long.
RESET = Script("""
for _, index in ipairs(redis.call('ZRANGE', KEYS[1] .. ':indexes', 0, -1)) do
  redis.call('UNLINK', index)
end
redis.call('DEL', KEYS[1] .. ':indexes')
local pattern = string.gsub(KEYS[1], '([%[%]*?\\\\])', '\\\\%1') .. ':e:*'
local cursor = '0'
repeat
  local found = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', 1000)
  cursor = found[1]
  for _, entry in ipairs(found[2]) do redis.call('UNLINK', entry) end
until cursor == '0'
return 0
""")
