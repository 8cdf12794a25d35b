"""What Redis does with the stream of events in one step."""

# An epoch names one life of the stream: Redis restarted, or the stream gone and made anew, makes for another. It is a random
# key beside the stream with the run of the server; ids of one epoch say nothing in another.
_COMMON = """
local stream, epoch_key = KEYS[1], KEYS[2]

local function epoch_of(fresh)
  local found = redis.call('GET', epoch_key)
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XGROUP', 'CREATE', stream, 'nobody', '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', stream, 'nobody')
    found = false
  end
  if not found then
    redis.call('SET', epoch_key, fresh)
    found = fresh
  end
  return found .. ':' .. string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function parts(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(number)
end

local function before(one, other)
  local ms, number = parts(one)
  local other_ms, other_number = parts(other)
  return ms < other_ms or (ms == other_ms and number < other_number)
end

local function next_to(id)
  local ms, number = parts(id)
  return string.format('%.0f-%.0f', ms, number + 1)
end

local function groups_of()
  local found = {}
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local facts = {}
    for place = 1, #flat, 2 do facts[flat[place]] = flat[place + 1] end
    table.insert(found, {name = facts['name'], pending = facts['pending'], last = facts['last-delivered-id']})
  end
  return found
end
"""

# KEYS: the stream, its epoch. ARGV: the epoch it is to be, a fresh one, then name and value of each record.
# Returns the epoch and, when it is that, the id of the last record; otherwise nothing was added.
ADD = (
    _COMMON
    + """
local epoch, last = epoch_of(ARGV[2]), false
if epoch ~= ARGV[1] then return {epoch} end
for place = 3, #ARGV, 2 do last = redis.call('XADD', stream, '*', ARGV[place], ARGV[place + 1]) end
return {epoch, last}
"""
)

# KEYS: the stream, its epoch. ARGV: the cap in bytes, a fresh epoch, the most entries to drop at once.
# Trims what every group has acknowledged; of a stream above its cap drops the oldest entries, and adds a gap that says so.
# Returns the epoch, the id before which nothing is of use any more, and whether there is more to drop.
TRIM = (
    _COMMON
    + """
local cap, epoch = tonumber(ARGV[1]), epoch_of(ARGV[2])

local floor
for _, group in ipairs(groups_of()) do
  local oldest = next_to(group.last)
  if group.pending > 0 then oldest = redis.call('XPENDING', stream, group.name)[2] end
  if not floor or before(oldest, floor) then floor = oldest end
end
if floor then redis.call('XTRIM', stream, 'MINID', floor) end

local function drop(count)
  local entries, groups = redis.call('XRANGE', stream, '-', '+', 'COUNT', count), groups_of()
  local first, last, total, missing = entries[1][1], entries[#entries][1], 0, {}
  for _, group in ipairs(groups) do
    group.waiting = {}
    missing[group.name] = 0
    for _, row in ipairs(redis.call('XPENDING', stream, group.name, '-', last, count)) do group.waiting[row[1]] = true end
  end
  for _, entry in ipairs(entries) do
    local gap = entry[2][1] == 'gap' and cjson.decode(entry[2][2])
    total = total + (gap and gap.count or 1)
    for _, group in ipairs(groups) do
      if before(group.last, entry[1]) or group.waiting[entry[1]] then
        local lost = gap and ((gap.missing or {})[group.name] or gap.count) or 1
        missing[group.name] = missing[group.name] + lost
      end
    end
  end
  local record = {from = first, to = last, count = total, missing = missing}
  if #groups == 0 then record.missing = nil end
  redis.call('XADD', stream, '*', 'gap', cjson.encode(record))
  for _, group in ipairs(groups) do
    for id in pairs(group.waiting) do redis.call('XACK', stream, group.name, id) end
  end
  redis.call('XTRIM', stream, 'MINID', next_to(last))
end

local function size() return redis.call('MEMORY', 'USAGE', stream, 'SAMPLES', 100) end
local bytes, length = size(), redis.call('XLEN', stream)
if bytes > cap and length > 1 then
  -- At least two, since the gap that takes their place is one more.
  drop(math.min(tonumber(ARGV[3]), length, math.max(2, math.ceil(length * (1 - cap / bytes)))))
end

local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
-- A group that came late has read nothing, and yet nothing waits for it before the oldest entry, or where there is none.
if not oldest then
  floor = '18446744073709551615-0'
elseif not floor or before(floor, oldest[1]) then
  floor = oldest[1]
end
local more = size() > cap and redis.call('XLEN', stream) > 1
return {epoch, floor, more and 1 or 0}
"""
)

# KEYS: the stream, its epoch. ARGV: the group. Makes the group, from the beginning of the stream, which need not be there yet.
JOIN = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
"""

# KEYS: the stream. ARGV: the group, milliseconds, a consumer or nothing for all. Forgets consumers that are idle for so long and
# hold nothing; what one holds would be forgotten with it.
FORGET = """
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local facts = {}
  for place = 1, #flat, 2 do facts[flat[place]] = flat[place + 1] end
  local meant = ARGV[3] == '' or ARGV[3] == facts['name']
  if meant and facts['pending'] == 0 and facts['idle'] >= tonumber(ARGV[2]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], facts['name'])
  end
end
"""
