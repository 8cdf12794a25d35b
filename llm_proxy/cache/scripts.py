"""The Lua scripts that keep stored responses in Redis.

What is under one key is one hash: `place` is by what it is purged; `generation` is random, and who wants to store has to show it,
so that nothing comes back once the hash was forgotten; `order` is a JSON list of variants, the oldest first, each with its name,
the millisecond when it may go, its size; `v<name>` is a packed entry. A key that holds anything else is taken for empty.
"""

# KEYS: one. ARGV: its place, a generation if it has none, for how many milliseconds that counts at least.
# Answers: the generation, then the packed entries.
LOOK_UP = """
local key, lasts = KEYS[1], tonumber(ARGV[3])
local found = redis.pcall('HGETALL', key)
local generation, values = nil, {}
for at = 1, #found, 2 do
  if found[at] == 'generation' then generation = found[at + 1] end
  if string.sub(found[at], 1, 1) == 'v' then values[#values + 1] = found[at + 1] end
end
if not generation then
  -- A script that has written once is let to write on even if Redis is full, so this is not done for nothing.
  if found.err or #found > 0 then redis.call('DEL', key) end
  redis.call('HSET', key, 'place', ARGV[1], 'generation', ARGV[2])
  redis.call('PEXPIRE', key, lasts)
  return {ARGV[2]}
end
-- Twice as long, so that not every lookup of what will expire soon has to write.
if redis.call('PTTL', key) < lasts then redis.call('PEXPIRE', key, 2 * lasts) end
return {generation, unpack(values)}
"""

# KEYS: one. ARGV: the generation, the variant, its packed entry or nothing to forget the one before, for how many milliseconds it
# is kept, how many variants there may be, how many bytes all of them may have. Answers: whether it was stored.
STORE = """
local key, variant, value, kept, most, room = KEYS[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.pcall('HGET', key, 'generation') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local staying, total = {}, #value
local listed = redis.call('HGET', key, 'order')
for _, each in ipairs(listed and cjson.decode(listed) or {}) do
  if each[1] == variant or each[2] <= now then
    redis.call('HDEL', key, 'v' .. each[1])
  else
    staying[#staying + 1] = each
    total = total + each[3]
  end
end
if value ~= '' then
  while #staying > 0 and (#staying >= most or total > room) do
    local oldest = table.remove(staying, 1)
    redis.call('HDEL', key, 'v' .. oldest[1])
    total = total - oldest[3]
  end
  staying[#staying + 1] = {variant, now + kept, #value}
  redis.call('HSET', key, 'v' .. variant, value)
  if redis.call('PTTL', key) < kept then redis.call('PEXPIRE', key, kept) end
end
redis.call('HSET', key, 'order', cjson.encode(staying))
return value ~= '' and 1 or 0
"""

# KEYS: any. Answers: how many entries were under them.
FORGET = """
local forgotten = 0
for _, key in ipairs(KEYS) do
  for _, field in ipairs(redis.pcall('HKEYS', key)) do
    if string.sub(field, 1, 1) == 'v' then forgotten = forgotten + 1 end
  end
  redis.call('UNLINK', key)
end
return forgotten
"""

# KEYS: any. Answers: for each its place.
PLACES = """
local places = {}
for at, key in ipairs(KEYS) do
  local place = redis.pcall('HGET', key, 'place')
  places[at] = type(place) == 'string' and place or ''
end
return places
"""

# KEYS: any. Answers: for each its place, how many entries are under it; without a look at any of them.
COUNT = """
local rows = {}
for at, key in ipairs(KEYS) do
  local place, entries = '', 0
  local others = redis.pcall('HMGET', key, 'place', 'generation', 'order')
  if not others.err then
    entries = redis.call('HLEN', key)
    for field = 1, 3 do
      if others[field] then entries = entries - 1 end
    end
    place = others[1] or ''
  end
  rows[at] = {place, entries}
end
return rows
"""

# KEYS: any. Answers: for each its place, how many entries are under it, how many bytes it counts for.
MEASURE = """
local rows = {}
for at, key in ipairs(KEYS) do
  local entries, size = 0, #key
  for _, field in ipairs(redis.pcall('HKEYS', key)) do
    if string.sub(field, 1, 1) == 'v' then
      entries = entries + 1
      size = size + #field + redis.call('HSTRLEN', key, field)
    end
  end
  local place = redis.pcall('HGET', key, 'place')
  rows[at] = {type(place) == 'string' and place or '', entries, size}
end
return rows
"""
