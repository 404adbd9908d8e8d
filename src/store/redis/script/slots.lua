-- Counters of running tasks: a sorted set of slots, by the time until which they count. What else is
-- there is nothing of ours. And what else is done to counters now and then.

local function open_slots(index)
  local expired = redis.pcall('ZREMRANGEBYSCORE', KEYS[index], '-inf', now)
  if type(expired) == 'table' then
    redis.call('DEL', KEYS[index])
  end
end

local function member(number)
  return ARGV[3] .. ':' .. string.format('%.0f', number)
end

-- A slot counts until its time is over; the key lives as long as any of them.
local function set_slot(key, name, lease_us)
  redis.call('ZADD', key, now + lease_us, name)
  if redis.call('PTTL', key) < lease_us / 1000 then
    redis.call('PEXPIRE', key, floor(lease_us / 1000) + 1000)
  end
end

KINDS[RUNNING] = {
  open = function(index)
    open_slots(index)
    return { kind = RUNNING, used = redis.call('ZCARD', KEYS[index]), asked = 0 }
  end,
  take = function(cell, charge)
    cell.used = cell.used + charge.cost
    set_slot(KEYS[charge.index], member(charge.b), charge.a)
  end,
  settle = function(_, index, units, _, number)
    if units < 0 then
      redis.call('ZREM', KEYS[index], member(number))
      cells[index] = nil -- counted again when it is asked next
    end
  end,
}

local function renew(item, lost_too)
  local from = 2
  while from <= #item do
    local index, lease_us, number
    index, lease_us, number, from = read('<I2dd', item, from)
    open_slots(index)
    if lost_too or redis.call('ZSCORE', KEYS[index], member(number)) then
      set_slot(KEYS[index], member(number), lease_us)
      cells[index] = nil
    end
  end
  return ''
end

WORK.R = function(item) return renew(item, false) end
WORK.S = function(item) return renew(item, true) end

-- A task whose name is held already holds a second slot: the n-th is called task .. n.
local MOST_OF_A_NAME = 16

WORK.H = function(item)
  local index, longest_us, number, from = read('<I2dd', item, 2)
  local key, task = KEYS[index], sub(item, from)
  open_slots(index)
  redis.call('ZREM', key, member(number))
  local n = 1
  while n < MOST_OF_A_NAME and redis.call('ZSCORE', key, 't' .. task .. n) do
    n = n + 1
  end
  set_slot(key, 't' .. task .. n, longest_us)
  cells[index] = nil
  return ''
end

WORK.K = function(item)
  local index, longest_us, n, from = read('<I2dd', item, 2)
  local key, name = KEYS[index], 't' .. sub(item, from) .. string.format('%.0f', n)
  open_slots(index)
  if not redis.call('ZSCORE', key, name) then
    set_slot(key, name, longest_us)
  end
  cells[index] = nil
  return ''
end

WORK.F = function(item)
  local index, from = read('<I2', item, 2)
  local key, task = KEYS[index], sub(item, from)
  open_slots(index)
  cells[index] = nil
  for n = MOST_OF_A_NAME, 1, -1 do
    if redis.call('ZREM', key, 't' .. task .. n) == 1 then
      return '1'
    end
  end
  return '0'
end

WORK.E = function(item)
  local from, index = 2, nil
  while from <= #item do
    index, from = read('<I2', item, from)
    redis.call('DEL', KEYS[index])
    cells[index], values[index] = nil, false
  end
  return ''
end
