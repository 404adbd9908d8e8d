-- A gateway's sign of life.
--
-- KEYS[1]  the epoch: set by whoever finds none, so that a store which has lost all is known
-- KEYS[2]  the gateways, by the time of their last sign
-- KEYS[3]  how many signs there have been: a store that has lost some is an older one
-- ARGV     ID of the gateway, a new epoch, microseconds after which a gateway counts as gone
--
-- Returns {time, epoch, signs, gateway...}.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[2] .. '.' .. string.format('%.0f', now)
end
-- It outlives a pause of all gateways: with the last counter, nothing is left that it speaks for.
redis.call('SET', KEYS[1], epoch, 'PX', 172800000)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3])
-- Signs of the future: the clock has been put back since.
redis.call('ZREMRANGEBYSCORE', KEYS[2], now + ARGV[3], '+inf')
redis.call('PEXPIRE', KEYS[2], 60000)
local reply = redis.call('ZRANGE', KEYS[2], 0, -1)
table.insert(reply, 1, string.format('%.0f', redis.call('INCRBY', KEYS[3], 1)))
redis.call('PEXPIRE', KEYS[3], 172800000)
table.insert(reply, 1, epoch)
table.insert(reply, 1, string.format('%.0f', now))
return reply
