-- Decides, gives back and puts units, for a batch of items, all at one moment.
--
-- A script makes all of its functions anew in each run, so that a command gets what it needs:
-- this file, `slots.lua` and `totals.lua` where it has items or counters of those, and `run.lua`
-- (`script.rs`).
--
-- KEYS     the counters of the batch, each once; with an epoch, KEYS[1] is the epoch key
-- ARGV[1]  the epoch that the caller knows; '' when there is none to be checked
-- ARGV[2]  the time in microseconds; '' for the server's own
-- ARGV[3]  the gateway's ID: the slots that it takes carry it
-- ARGV[4]  when this store was last found to lack what it had: totals of before are in doubt
-- ARGV[5+] items. The first byte says what to do:
--          D  decide: earliest and latest time at which this may run, how many ask for it, one
--             after the other (more than one: sliding windows and days, not report only, and
--             nothing more wanted), then charges
--             (key, kind, report only, quota, cost, more wanted, a, b)
--          B  give back: (key, kind, units, a, b) of each charge
--          P  put units that were admitted elsewhere: the same
--          R  renew slots, unless they have expired: (key, lease, number of the slot)
--          S  set slots, whatever has become of them: the same
--          H  hold a slot for a task: (key, longest time, number of the slot, hash of the task)
--          K  keep a slot for a task, if it is unknown: the same, with the n-th of its name
--          F  a task is finished: (key, hash of the task)
--          E  empty counters: (key)
--          C  change totals: (key, how, units, a, b); see `limit::total`
--          W  the same for one who waits: earliest and latest time at which this may run, then these
--          N  sign for the totals that were moved: (key of the signs, the last that was answered)
--
-- kind 0  sliding window   a = length of a step, b = step of the units (B and P)
-- kind 1  day              a = its beginning,    b = its end
-- kind 2  running tasks    a = lease,            b = number of the slot
-- kind 3  total            a = enforced if it was checked then or later, b = figure, more = the
--                          gateway's era (D); a = its era, b = round (B)
--
-- Returns {time, reply...}; {time} alone when the epoch is another: nothing was done then.
-- Reply to D: A (admitted) or N (denied), then for each charge: units used before, more units
-- granted, and a time: until units come free (A; -1: report only, and over) or until a retry
-- fits (N; 0: this one fits, -1: never). L: too early or too late. T: another day.
-- Of a total: units there before, its round, and -1 where it does not fit and may not refuse.
-- After all of them, of each total again: units there before, high and low half, and when it was
-- checked; and after these, of each: the round that its count goes by, 0 and 0.
-- Where several ask for it: M, how many are admitted, and the replies to the first of these and to
-- the first that is denied, as far as there are any, each without its first byte.
-- Reply to F: 1 if the task held a slot, else 0. To C and W: V, and a line for each change: the
-- total, after the last change of it, and nothing after those before. W may be L, too. To N: the
-- sign, or O: the store lacks the last, and so is an older one. Else empty.

local RING = 51            -- steps that count: a window's fifty, and the one being filled
local FUTURE = 128         -- slots are step numbers modulo 256; half of them lie ahead
local SECOND = 1000000
local MINUTE = 60 * SECOND
-- Longer than a window: a failover to a clock ahead loses nothing. Up to a minute of it is over
-- before it is set anew.
local IDLE_LIVES_MS = 120000
local DAY_LIVES_MS = 172800000
local MOST = 4294967295
local SLIDING, DAY, RUNNING, TOTAL = 0, 1, 2, 3
local AT_ONCE = 4000

local pack, read, sub = struct.pack, struct.unpack, string.sub
local floor, max, min = math.floor, math.max, math.min
-- As many as the stack has room for at once.
local values = redis.call('MGET', unpack(KEYS, 1, min(#KEYS, AT_ONCE)))
for from = AT_ONCE + 1, #KEYS, AT_ONCE do
  local some = redis.call('MGET', unpack(KEYS, from, min(#KEYS, from + AT_ONCE - 1)))
  for i = 1, #some do
    values[from + i - 1] = some[i]
  end
end

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * SECOND + time[2]
end
local replies = { string.format('%.0f', now) }
if ARGV[1] ~= '' and values[1] ~= ARGV[1] then
  return replies
end

-- How to open, take, give back and write a counter of the kinds that few calls have.
local KINDS = {}
-- What to do with an item, by its first byte.
local WORK = {}

-- A sliding counter is kept as: step, units used, then (slot, units) for each step, oldest first.
local function open_sliding(text, step_us)
  local step = floor(now / step_us)
  local cell = {
    kind = SLIDING, step = step, step_us = step_us, used = 0, steps = '', here = 0, ahead = 0,
    asked = 0, dirty = false, lasts = false,
  }
  if not text or #text < 12 or (#text - 12) % 5 ~= 0 then
    return cell -- nothing, or nothing of ours: written anew
  end
  local newest, used = read('<dI4', text)
  -- Written in this minute, which has set its time to live.
  cell.lasts = floor(newest * step_us / MINUTE) == floor(now / MINUTE)
  if (newest - step) * step_us > SECOND then
    -- The clock has gone back: what counted counts as if taken now, and so for one window more.
    -- Noted at once, or each denial would begin that window anew.
    cell.here, cell.used, cell.dirty = used, used, true
  elseif step - newest <= RING + 1 then
    if newest > step then
      cell.step = newest
    end
    local from, size = 13, #text
    while from <= size do
      local slot, units = read('<BI4', text, from)
      local age = (cell.step - slot) % 256
      if age < RING or age >= FUTURE then
        break
      end
      used = used - units
      from = from + 5
    end
    cell.used, cell.steps = used, sub(text, from)
  end
  return cell
end

-- The units of a day; none where what is there is nothing of ours, and not what INCRBY takes.
local function open_day(text)
  local is_ours = text and #text < 16 and not string.find(text, '%D')
  return {
    kind = DAY, used = is_ours and tonumber(text) or 0, is_new = not is_ours, change = 0,
    asked = 0, dirty = false,
  }
end

local cells = {}

local function open(index, kind, a)
  local cell = cells[index]
  if cell then
    return cell
  end
  if kind == SLIDING then
    cell = open_sliding(values[index], a)
  elseif kind == DAY then
    cell = open_day(values[index])
  else
    cell = KINDS[kind].open(index)
  end
  cells[index] = cell
  return cell
end

-- Adds units (or takes them away) to a step in the text of steps; how many it were.
local function merge(cell, slot, units)
  local steps = cell.steps
  local from = #steps - 4
  while from >= 1 do
    local other, there = read('<BI4', steps, from)
    if other == slot then
      local sum = max(there + units, 0)
      local entry = sum > 0 and pack('<BI4', slot, min(sum, MOST)) or ''
      cell.steps = sub(steps, 1, from - 1) .. entry .. sub(steps, from + 5)
      return sum - there
    end
    if (slot - other) % 256 < FUTURE then
      break -- the other is older
    end
    from = from - 5
  end
  if units <= 0 then
    return 0
  end
  cell.steps = sub(steps, 1, from + 4) .. pack('<BI4', slot, units) .. sub(steps, from + 5)
  return units
end

local function flush(cell)
  if cell.here > 0 then
    merge(cell, cell.step % 256, cell.here)
    cell.here = 0
  end
  if cell.ahead > 0 then
    merge(cell, (cell.step + 1) % 256, cell.ahead)
    cell.ahead = 0
  end
end

-- When the units of a slot stop counting.
local function free_in(cell, slot)
  local age = (cell.step - slot) % 256
  if age >= FUTURE then
    age = age - 256
  end
  return max((cell.step - age + RING) * cell.step_us - now, 1)
end

local function wait(cell, quota, cost)
  if cost > quota then
    return -1
  end
  if cell.kind ~= SLIDING then
    return 1 -- the caller knows better
  end
  flush(cell)
  local left, room = cell.used, quota - cost
  for from = 1, #cell.steps, 5 do
    local slot, units = read('<BI4', cell.steps, from)
    left = left - units
    if left <= room then
      return free_in(cell, slot)
    end
  end
  return 1
end

local function resets_in(cell)
  if cell.kind ~= SLIDING or cell.used == 0 then
    return 0
  end
  if cell.steps ~= '' then
    return free_in(cell, (read('B', cell.steps)))
  end
  return free_in(cell, cell.step % 256)
end

local function take(charge, times)
  local cell, units = charge.cell, charge.cost * times
  if units == 0 then
    return
  end
  if KINDS[cell.kind] then
    KINDS[cell.kind].take(cell, charge)
    return
  end
  cell.used = cell.used + units
  local more = charge.more
  if more > 0 then
    -- Never so much more that the others would find less than a tenth.
    more = max(min(more, charge.quota - cell.used - floor(charge.quota / 10)), 0)
    charge.granted = more
    cell.used = cell.used + more
  end
  cell.dirty = true
  if cell.kind == DAY then
    cell.change = cell.change + units + more
  else
    cell.here = cell.here + units
    -- They may be used until a step from now.
    cell.ahead = cell.ahead + more
  end
end

-- The charges of the item at hand; kept for the next, since a table costs more than its fields.
local charges = {}

local function is_over(charge)
  return charge.seen + charge.needs > charge.quota
end

-- Takes the charges so often, and adds what is found to the reply.
local function admit(count, times, reply)
  for i = 1, count do
    local charge = charges[i]
    if not charge.report then
      take(charge, times)
      if charge.cell.kind == TOTAL and is_over(charge) then
        charge.time = -1
      end
    end
  end
  for i = 1, count do
    local charge = charges[i]
    if charge.report then
      local then_used = charge.cost > 0 and charge.cell.used + charge.cost or charge.seen + 1
      if then_used > charge.quota then
        charge.time = -1
      else
        take(charge, times)
      end
    end
  end
  for i = 1, count do
    local charge = charges[i]
    local time = charge.time == 0 and resets_in(charge.cell) or charge.time
    reply[#reply + 1] = pack('<I4I4d', charge.seen > MOST and MOST or charge.seen, charge.granted, time)
  end
end

-- Adds what is found to the reply.
local function deny(count, reply)
  for i = 1, count do
    local charge = charges[i]
    charge.seen = charge.cell.used
    local time = 0
    if not charge.report and not charge.lax and is_over(charge) then
      time = wait(charge.cell, charge.quota, charge.needs)
    end
    local granted = charge.cell.kind == TOTAL and charge.granted or 0
    reply[#reply + 1] = pack('<I4I4d', charge.seen > MOST and MOST or charge.seen, granted, time)
  end
end

WORK.D = function(item)
  local earliest, latest, times, from = read('<ddI4', item, 2)
  if now < earliest or now > latest then
    return 'L'
  end
  local count, has_totals = 0, false
  while from <= #item do
    local index, kind, report, quota, cost, more, a, b
    index, kind, report, quota, cost, more, a, b, from = read('<I2BBI4I4I4dd', item, from)
    if kind == DAY and (now < a or now >= b) then
      return 'T'
    end
    local cell = open(index, kind, a)
    count = count + 1
    local charge = charges[count]
    if not charge then
      charge = {
        index = 0, cell = cell, report = false, quota = 0, cost = 0, more = 0, a = 0, b = 0,
        seen = 0, granted = 0, needs = 0, time = 0, lax = false,
      }
      charges[count] = charge
    end
    charge.index, charge.cell, charge.report = index, cell, report == 1
    charge.quota, charge.cost, charge.more, charge.a, charge.b = quota, cost, more, a, b
    charge.seen, charge.granted, charge.time, charge.lax = cell.used, 0, 0, false
    if kind == TOTAL then
      -- Whether it may refuse or not, it counts.
      charge.report, charge.lax, charge.quota = false, report == 1 or cell.checked < a, b
      charge.granted, has_totals = cell.round, true
    end
    cell.asked = 0
  end
  for i = 1, count do
    local charge = charges[i]
    if not charge.report then
      charge.cell.asked = charge.cell.asked + charge.cost
    end
  end
  local fit = times
  for i = 1, count do
    local charge, asked = charges[i], charges[i].cell.asked
    charge.needs = charge.cost > 0 and asked or 1
    if not charge.report and not charge.lax then
      local room = charge.quota - charge.seen - charge.needs
      if room < 0 then
        fit = 0
      elseif asked > 0 and room < asked * (fit - 1) then
        fit = floor(room / asked) + 1
      end
    end
  end
  local reply = { times > 1 and 'M' .. pack('<I4', fit) or fit == 1 and 'A' or 'N' }
  if fit > 0 then
    admit(count, fit, reply)
  end
  if fit < times then
    deny(count, reply)
  end
  return table.concat(reply) .. (has_totals and KINDS[TOTAL].tell(charges, count) or '')
end

-- Gives units back to where they were taken from, or puts them there.
local function settle(item, sign)
  local from = 2
  while from <= #item do
    local index, kind, units, a, b
    index, kind, units, a, b, from = read('<I2BI4dd', item, from)
    local cell = open(index, kind, a)
    if KINDS[kind] then
      KINDS[kind].settle(cell, index, sign * units, a, b)
    elseif kind == DAY then
      local change = max(sign * units, -cell.used)
      cell.used, cell.change, cell.dirty = cell.used + change, cell.change + change, true
    else
      flush(cell)
      local age = cell.step - b
      if age >= -1 and age < RING then
        cell.used = cell.used + merge(cell, b % 256, sign * units)
        cell.dirty = true
      end
    end
  end
  return ''
end

WORK.B = function(item) return settle(item, -1) end
WORK.P = function(item) return settle(item, 1) end
