-- A gateway's sign of life.
--
-- KEYS[1]  the epoch: set by whoever finds none, so that a store which has lost all is known
-- KEYS[2]  the gateways, by the time of their last sign
-- KEYS[3]  the last sign of each gateway, also of those that are gone
-- KEYS[4]  how often the store was found to be an older one: totals of before are in doubt
-- ARGV     ID of the gateway, a new epoch, microseconds after which a gateway counts as gone,
--          the last sign of this gateway that it was answered (0: none that matters), the epoch
--          that it knows ('' for none), and 1 if it has found the store to be an older one
--
-- Returns {time, epoch, sign, times found older, gateway...}. Sign 0: the store is an older one,
-- which a gateway is told until it asks for no more than there is.

local LIVES_MS = 172800000

local function born(epoch)
  return tonumber(string.match(epoch, '%.(%d+)$') or 0)
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local id, last, known_epoch = ARGV[1], tonumber(ARGV[4]), ARGV[5]
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[2] .. '.' .. string.format('%.0f', now)
end
-- It outlives a pause of all gateways: with the last counter, nothing is left that it speaks for.
redis.call('SET', KEYS[1], epoch, 'PX', LIVES_MS)
redis.call('ZADD', KEYS[2], now, id)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
-- Signs of the future: the clock has been put back since.
redis.call('ZREMRANGEBYSCORE', KEYS[2], now + ARGV[3], '+inf')
redis.call('PEXPIRE', KEYS[2], 60000)

local known = tonumber(redis.call('ZSCORE', KEYS[3], id) or 0)
-- One that has begun since has lost all: that is another matter.
local is_another = epoch ~= known_epoch and born(epoch) >= born(known_epoch)
local is_older = ARGV[6] == '1' or known < last
local sign = 0
if is_older and not is_another then
  redis.call('INCR', KEYS[4])
else
  sign = math.max(now, known + 1)
  redis.call('ZADD', KEYS[3], sign, id)
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - LIVES_MS * 1000)
  redis.call('PEXPIRE', KEYS[3], LIVES_MS)
end

local reply = redis.call('ZRANGE', KEYS[2], 0, -1)
table.insert(reply, 1, redis.call('GET', KEYS[4]) or '0')
table.insert(reply, 1, string.format('%.0f', sign))
table.insert(reply, 1, epoch)
table.insert(reply, 1, string.format('%.0f', now))
return reply
