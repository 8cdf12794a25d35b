"""The Lua scripts that count limits in Redis.

A rate is one hash, the same queue of entries as `window.Window`: `h` and `t` are the numbers of its first entry and of the next
one to come, `e<number>` and `c<number>` when an entry ended and how many requests are in it, `s` when the last one began, `n`
how many requests there are in all. Slots are one sorted set: who holds one, until when. Times are microseconds of the server.
"""

# KEYS: the rates, then the slots. ARGV: the time, or nothing for the server's; the id of the request, or nothing to look and take
# nothing; for how long it holds a slot; the number of rates; for each rate its limit, span, width of a sub-bucket; for each slot
# its limit, the number of ids that follow, ids of requests that have ended meanwhile. Answers: whether granted, whether a slot is
# missing, the wait; for each rate the number of its newest entry, how many requests are left, when the whole limit is free again.
TAKE = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local id, lifetime, rates = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local function text(number) return string.format('%.0f', number) end
local function ends(number) return 'e' .. text(number) end
local function counts(number) return 'c' .. text(number) end

local function clock_went_back(key, queue)
  for number = queue.tail - 1, queue.head, -1 do
    if tonumber(redis.call('HGET', key, ends(number))) <= now then break end
    redis.call('HSET', key, ends(number), text(now))
  end
  queue.start = math.min(queue.start, now)
end

local function read(key, span)
  local found = redis.call('HMGET', key, 'h', 't', 's', 'n')
  -- A new queue begins with a number that none before it can have reached, so that nothing old is given back to it.
  local queue = {head = tonumber(found[1] or now), tail = tonumber(found[2] or now),
                 start = tonumber(found[3] or 0), total = tonumber(found[4] or 0)}
  if queue.head < queue.tail and tonumber(redis.call('HGET', key, ends(queue.tail - 1))) > now then
    clock_went_back(key, queue)
  end
  local first = queue.head
  while queue.head < queue.tail do
    local entry = redis.call('HMGET', key, ends(queue.head), counts(queue.head))
    if tonumber(entry[1]) + span > now then break end
    queue.total = queue.total - tonumber(entry[2])
    redis.call('HDEL', key, ends(queue.head), counts(queue.head))
    queue.head = queue.head + 1
  end
  if queue.head > first then redis.call('HSET', key, 'h', text(queue.head), 'n', queue.total) end
  return queue
end

local function wait_of(key, queue, limit, span)
  local excess, number = queue.total - limit + 1, queue.head
  if excess <= 0 then return 0 end
  while true do
    local entry = redis.call('HMGET', key, ends(number), counts(number))
    excess = excess - tonumber(entry[2])
    if excess <= 0 then return tonumber(entry[1]) + span - now end
    number = number + 1
  end
end

local function add(key, queue, span, width)
  queue.total = queue.total + 1
  if queue.head < queue.tail and now - queue.start <= width then
    redis.call('HINCRBY', key, counts(queue.tail - 1), 1)
    redis.call('HSET', key, ends(queue.tail - 1), text(now), 'n', queue.total)
  else
    redis.call('HSET', key, ends(queue.tail), text(now), counts(queue.tail), 1, 'h', text(queue.head),
               't', text(queue.tail + 1), 's', text(now), 'n', queue.total)
    queue.tail = queue.tail + 1
  end
  redis.call('PEXPIRE', key, math.ceil(span / 1000) + 1000)
end

local function is_full(key, at)
  local limit, ended = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  if ended > 0 then redis.call('ZREM', key, unpack(ARGV, at + 2, at + 1 + ended)) end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
  -- Expiries further away than one lifetime are from before the clock went back.
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', key, '(' .. text(now + lifetime), '+inf')) do
    redis.call('ZADD', key, text(now + lifetime), holder)
  end
  -- A request that is sent twice because its connection broke holds its slot already.
  return redis.call('ZCARD', key) >= limit and not redis.call('ZSCORE', key, id), at + 2 + ended
end

local queues, wait, full = {}, 0, false
for i = 1, rates do
  local limit, span = tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
  queues[i] = read(KEYS[i], span)
  wait = math.max(wait, wait_of(KEYS[i], queues[i], limit, span))
end
local at = 5 + 3 * rates
for i = rates + 1, #KEYS do
  local missing
  missing, at = is_full(KEYS[i], at)
  full = full or missing
end
local granted = wait == 0 and not full and id ~= ''
for i = rates + 1, granted and #KEYS or 0 do
  redis.call('ZADD', KEYS[i], text(now + lifetime), id)
  redis.call('PEXPIRE', KEYS[i], math.ceil(lifetime / 1000) + 1000)
end
local answer = {granted and 1 or 0, full and 1 or 0, wait}
for i = 1, rates do
  local queue, limit, span, reset = queues[i], tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3]), 0
  if granted then add(KEYS[i], queue, span, tonumber(ARGV[3 * i + 4])) end
  if queue.total > 0 then reset = tonumber(redis.call('HGET', KEYS[i], ends(queue.tail - 1))) + span - now end
  for _, value in ipairs({queue.tail - 1, math.max(limit - queue.total, 0), reset}) do answer[#answer + 1] = value end
end
return answer
"""

# KEYS: rates. ARGV: for each the number of the entry from which one request is given back, if it has not left already.
GIVE_BACK = """
for i, key in ipairs(KEYS) do
  if redis.call('HEXISTS', key, 'c' .. ARGV[i]) == 1 then
    redis.call('HINCRBY', key, 'c' .. ARGV[i], -1)
    redis.call('HINCRBY', key, 'n', -1)
  end
end
"""

# KEYS: slots. ARGV: the time, or nothing for the server's; for how long they are held from now on; the ids of their holders.
HOLD = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local lifetime = tonumber(ARGV[2])
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.0f', now + lifetime), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], math.ceil(lifetime / 1000) + 1000)
"""
