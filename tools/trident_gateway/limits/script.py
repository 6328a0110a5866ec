"""The script with which a Redis or Valkey counts limits.

Owns the one script, which computes what `standing` and `memory` compute: a test runs both side by side. It reads and
writes an account in one step and by the server's clock, so that any number of gateways hold one limit. Never run here.

Its keys are the account (a hash) and the account's leases (a sorted set by the time at which each ends). A lease that
nobody prolongs ends by itself: its gateway has died, and what it held counts as used.
"""

from __future__ import annotations

#: Arguments: `take`, `adjust`, `charge` or `renew`; the time in ms, or "" for the server's; how long a lease lasts, in
#: ms. Then for `renew` "XX" to prolong only leases that are still there, or "", and the leases. For the others one
#: lease; the limits (0 for none) of requests, input and output tokens a minute, concurrency, day and month; input and
#: output tokens; and but for `take` the time at which they were taken, and 1 to end the lease. `charge` counts to the
#: quotas alone.
LIMITS_SCRIPT = """
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local lease_ms = tonumber(ARGV[3])
local account, leases = KEYS[1], KEYS[2]

local function whole(number) return string.format('%.0f', number) end
local function hold(lease, option)
  if option == 'XX' then
    redis.call('ZADD', leases, 'XX', whole(now + lease_ms), lease)
  else
    redis.call('ZADD', leases, whole(now + lease_ms), lease)
  end
end

if ARGV[1] == 'renew' then
  for index = 5, #ARGV do hold(ARGV[index], ARGV[4]) end
  redis.call('PEXPIRE', leases, 2 * lease_ms)
  return {}
end

local lease = ARGV[4]
local limits = {}
for index = 1, 6 do limits[index] = tonumber(ARGV[4 + index]) end
local input, output = tonumber(ARGV[11]), tonumber(ARGV[12])

if ARGV[1] == 'adjust' and not redis.call('ZSCORE', leases, lease) then return {} end

local function day_of(ms) return math.floor(ms / 86400000) end
local function month_of(ms)
  local day = day_of(ms) + 719468
  local era = math.floor(day / 146097)
  local of_era = day - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
    - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return (era * 400 + year) * 12 + math.floor((5 * of_year + 2) / 153) + 2
end

local kept = redis.call('HMGET', account,
  'now', 'requests', 'input', 'output', 'day', 'day_used', 'month', 'month_used')
local passed = math.max(0, now - (tonumber(kept[1]) or now))
local levels = {}
for index = 1, 3 do
  local limit, level = limits[index], tonumber(kept[index + 1])
  if limit == 0 then
    levels[index] = false
  elseif not level then
    levels[index] = limit * 60000
  else
    levels[index] = math.min(limit * 60000, level + limit * passed)
  end
end
local day, month = day_of(now), month_of(now)
local day_used = tonumber(kept[5]) == day and tonumber(kept[6]) or 0
local month_used = tonumber(kept[7]) == month and tonumber(kept[8]) or 0

local answer = 1
if ARGV[1] == 'take' then
  redis.call('ZREMRANGEBYSCORE', leases, '-inf', whole(now))
  local held = redis.call('ZCARD', leases)
  local needs = {1, input, output}
  for index = 1, 3 do
    local need = math.min(needs[index], limits[index])
    if levels[index] and need > 0 and levels[index] < need * 60000 then answer = 0 end
  end
  if limits[4] > 0 and held >= limits[4] then answer = 0 end
  local used = {day_used, month_used}
  for index = 5, 6 do
    local limit = limits[index]
    if limit > 0 and used[index - 4] + math.min(input + output, limit) > limit then answer = 0 end
  end
  if answer == 1 then
    for index = 1, 3 do
      if levels[index] then levels[index] = levels[index] - needs[index] * 60000 end
    end
    day_used = day_used + input + output
    month_used = month_used + input + output
    hold(lease, '')
    redis.call('PEXPIRE', leases, 2 * lease_ms)
  end
else
  local needs = ARGV[1] == 'adjust' and {0, input, output} or {0, 0, 0}
  for index = 1, 3 do
    if levels[index] then levels[index] = math.min(limits[index] * 60000, levels[index] - needs[index] * 60000) end
  end
  local taken_at = tonumber(ARGV[13])
  if day_of(taken_at) == day then day_used = math.max(0, day_used + input + output) end
  if month_of(taken_at) == month then month_used = math.max(0, month_used + input + output) end
  if ARGV[14] == '1' then redis.call('ZREM', leases, lease) end
end

local function shown(level) return level and whole(level) or '' end
redis.call('HSET', account, 'now', whole(now), 'requests', shown(levels[1]), 'input', shown(levels[2]),
  'output', shown(levels[3]), 'day', day, 'day_used', whole(day_used), 'month', month, 'month_used', whole(month_used))
redis.call('PEXPIRE', account, 3024000000)
return {answer, now, levels[1] or 0, levels[2] or 0, levels[3] or 0, redis.call('ZCARD', leases), day_used, month_used}
"""
