-- A gateway's sign of life.
--
-- KEYS[1]  the epoch: set by whoever finds none, so that a store which has lost all is known
-- KEYS[2]  the gateways, by the time of their last sign
-- KEYS[3]  the last sign of each gateway, also of those that are gone
-- KEYS[4]  when the store was last found to lack what it had: totals of before are in doubt
-- ARGV     ID of the gateway, a new epoch, microseconds after which a gateway counts as gone,
--          the last sign of this gateway that it was answered (0: none), the epoch that it knows
--          ('' for none), and 1 if its words have found the store to lack their last sign
--
-- Returns {time, epoch, sign, when it was last found to lack something, gateway...}.

local MOST_SIGNS = 10000 -- whoever is not among them raises an alarm that is none

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local id, last, known_epoch = ARGV[1], tonumber(ARGV[4]), ARGV[5]
local epoch = redis.call('GET', KEYS[1])
local is_drawn = not epoch
-- Like the totals, it does not expire: a backup of any age has it.
if is_drawn then
  epoch = ARGV[2] .. '.' .. string.format('%.0f', now)
  redis.call('SET', KEYS[1], epoch)
end
redis.call('ZADD', KEYS[2], now, id)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
-- Signs of the future: the clock has been put back since.
redis.call('ZREMRANGEBYSCORE', KEYS[2], now + ARGV[3], '+inf')
redis.call('PEXPIRE', KEYS[2], 60000)

local known = tonumber(redis.call('ZSCORE', KEYS[3], id) or 0)
local found = tonumber(redis.call('GET', KEYS[4]) or 0)
local lacks = known < last or ARGV[6] == '1' or known_epoch ~= '' and epoch ~= known_epoch
-- What was answered before it was last found to lack something has been seen to.
if is_drawn or lacks and last > found then
  found = math.max(now, found + 1, last + 1)
  redis.call('SET', KEYS[4], string.format('%.0f', found))
end
local sign = math.max(now, known + 1, found + 1)
redis.call('ZADD', KEYS[3], sign, id)
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -MOST_SIGNS - 1)

local reply = redis.call('ZRANGE', KEYS[2], 0, -1)
table.insert(reply, 1, string.format('%.0f', found))
table.insert(reply, 1, string.format('%.0f', sign))
table.insert(reply, 1, epoch)
table.insert(reply, 1, string.format('%.0f', now))
return reply
