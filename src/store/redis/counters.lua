-- Decides, gives back and puts units, for a batch of items, all at one moment.
--
-- KEYS     the counters of the batch, each once; with an epoch, KEYS[1] is the epoch key
-- ARGV[1]  the epoch that the caller knows; '' when there is none to be checked
-- ARGV[2]  the time in microseconds; '' for the server's own
-- ARGV[3]  the gateway's ID: the slots that it takes carry it
-- ARGV[4+] items. The first byte says what to do:
--          D  decide: earliest and latest time at which this may run, then charges
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
-- Reply to F: 1 if the task held a slot, else 0. To C and W: V, and a line for each change: the
-- total, after the last change of it, and nothing after those before. W may be L, too. Else empty.

local RING = 51            -- steps that count: a window's fifty, and the one being filled
local FUTURE = 128         -- slots are step numbers modulo 256; half of them lie ahead
local SECOND = 1000000
local IDLE_LIVES_MS = 60000 -- longer than a window: a failover to a clock ahead loses nothing
local DAY_LIVES_MS = 172800000
local MOST = 4294967295
local SLIDING, DAY, RUNNING, TOTAL = 0, 1, 2, 3
local MOST_OF_TOTAL = 9007199254740991
local LONGEST = 3600        -- seconds: no call is under way for longer
local AT_ONCE = 4000

local pack, read, sub, floor = struct.pack, struct.unpack, string.sub, math.floor
-- As many as the stack has room for at once.
local values = redis.call('MGET', unpack(KEYS, 1, math.min(#KEYS, AT_ONCE)))
for from = AT_ONCE + 1, #KEYS, AT_ONCE do
  local some = redis.call('MGET', unpack(KEYS, from, math.min(#KEYS, from + AT_ONCE - 1)))
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

-- A sliding counter is kept as: step, units used, then (slot, units) for each step, oldest first.
local function open_sliding(text, step_us)
  local step = floor(now / step_us)
  local cell = {
    kind = SLIDING, step = step, step_us = step_us, used = 0, steps = '', here = 0, ahead = 0,
    asked = 0, dirty = false,
  }
  if not text or #text < 12 or (#text - 12) % 5 ~= 0 then
    return cell -- nothing, or nothing of ours: written anew
  end
  local newest, used = read('<dI4', text)
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

-- Slots are a sorted set. What else is there is nothing of ours.
local function open_slots(index)
  local expired = redis.pcall('ZREMRANGEBYSCORE', KEYS[index], '-inf', now)
  if type(expired) == 'table' then
    redis.call('DEL', KEYS[index])
  end
end

-- The units of a day; none where what is there is nothing of ours, and not what INCRBY takes.
local function open_day(text)
  if text and #text < 16 and not string.find(text, '%D') then
    return tonumber(text)
  end
end

-- A total, as `Total::to_text` writes it, and behind ' @' whose units are under way, with commas
-- between: `ID.era:open/older/since/at/left/owed`, and `!` behind it where that gateway is thought
-- to be gone. A gateway has an entry for each of its eras (`under_way.rs`), and closes units of its
-- own alone. `left`: units that were under way when an import or a listing came and the gateway was
-- thought to be gone. They are not on top of it, and mark it: they may be made yet. Those of the
-- entry were taken in round `since` or later, which tells them from these. Of units that were taken
-- without the store the gateway tells in words, which come in any order; their eras are odd. `owed`:
-- so many were closed before it was heard that they had been taken. What else is there is nothing
-- of ours.
local TOTAL_TEXT = '^(%d+) (%d+) ([01]) (%d+) (%d+) (-?%d+) (%d+)(.*)$'
local UNDER_WAY = '^ (%d+) (%d+) (%d+)$'
local OWNED = '^([^:]+):(%d+)/(%d+)/(%d+)/(%d+)/(%d+)/(%d+)(!?)$'
local NOBODY = '-'

local function owned(open, older, since, at, left, owed, gone)
  return {
    open = tonumber(open), older = tonumber(older), since = tonumber(since), at = tonumber(at),
    left = tonumber(left), owed = tonumber(owed), gone = gone == '!',
  }
end

-- The entries of a total with these sums. What no entry has is nobody's.
local function open_owners(text, open, older, at)
  local owners = {}
  for one in string.gmatch(text or '', '[^,]+') do
    local owner, its_open, its_older, since, its_at, left, owed, gone = string.match(one, OWNED)
    if owner then
      local own = owned(its_open, its_older, since, its_at, left, owed, gone)
      owners[owner] = own
      open, older = math.max(open - own.open, 0), math.max(older - own.older, 0)
    end
  end
  if open > 0 or older > 0 then
    owners[NOBODY] = owned(open, older, 0, at, 0, 0)
  end
  return owners
end

local function open_total(text)
  local alone, listed = string.match(text or '', '^(.-) @(.*)$')
  text = alone or text
  local used, checked, approximate, round, basis, net, moves, rest =
    string.match(text or '', TOTAL_TEXT)
  local open, older, older_at
  if rest and rest ~= '' then
    open, older, older_at = string.match(rest, UNDER_WAY)
    if not open then
      used, checked, approximate, round, basis, net, moves, listed = nil
    end
  end
  -- Of one that is not there, a round that none before it had: what was taken of a total that has
  -- been lost is none of this one's.
  local first = floor(now / 1000) % 2147483648
  return {
    kind = TOTAL, used = tonumber(used or 0), checked = tonumber(checked or 0),
    approximate = tonumber(approximate or 0), round = tonumber(round or first),
    basis = tonumber(basis or first), net = tonumber(net or 0), moves = tonumber(moves or 0),
    owners = open_owners(used and listed, tonumber(open or 0), tonumber(older or 0), older_at or 0),
    asked = 0, dirty = false,
  }
end

local function total_text(total)
  local text = string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f', total.used, total.checked,
    total.approximate, total.round, total.basis, total.net, total.moves)
  local open, older, at, listed = 0, 0, 0, {}
  for owner, own in pairs(total.owners) do
    if own.open > 0 or own.older > 0 or own.left > 0 or own.owed > 0 then
      listed[#listed + 1] = string.format('%s:%.0f/%.0f/%.0f/%.0f/%.0f/%.0f%s', owner, own.open,
        own.older, own.since, own.at, own.left, own.owed, own.gone and '!' or '')
      open, older = open + own.open, older + own.older
      at = own.older > 0 and math.max(at, own.at) or at
    end
  end
  if open > 0 or older > 0 then
    text = text .. string.format(' %.0f %.0f %.0f', math.min(open, MOST_OF_TOTAL),
      math.min(older, MOST_OF_TOTAL), at)
  end
  if #listed == 0 then
    return text, true
  end
  return text .. ' @' .. table.concat(listed, ','), false
end

-- The entry of this gateway, which is there, or it would not speak.
local function own_of(total, era)
  local mine = ARGV[3] .. '.'
  for owner, own in pairs(total.owners) do
    if own.gone and sub(owner, 1, #mine) == mine then
      own.gone = false
    end
  end
  local owner = mine .. string.format('%.0f', era)
  local own = total.owners[owner]
  if not own then
    own, total.by_gateway = owned(0, 0, 0, 0, 0, 0), nil
    total.owners[owner] = own
  end
  total.dirty = true
  return own
end

local function forget_when(own)
  if own.older == 0 and own.left == 0 and own.owed == 0 then
    own.at = 0
  end
end

-- What comes between a listing is noted.
local function note_total(total, units)
  if total.round ~= total.basis then
    total.net, total.moves = total.net + units, math.min(total.moves + 1, MOST)
  end
  total.dirty = true
end

local function add_total(total, units)
  total.used = math.min(total.used + units, MOST_OF_TOTAL)
  note_total(total, units)
end

-- Whether this era's units were taken without the store: it hears of them in any order.
local function is_told(era)
  return era % 2 == 1
end

local function take_total(total, units, round, era)
  if is_told(era) and round ~= total.round then
    total.approximate = 1 -- what has come since may have them
  end
  local own = own_of(total, era)
  local owed = math.min(units, own.owed)
  if owed > 0 then
    own.owed = own.owed - owed
    forget_when(own)
    if owed == units then
      return
    end
    units = units - owed
  end
  add_total(total, units)
  local under_way = round == total.round and 'open' or 'older'
  if own.left == 0 then
    own.since = math.min(own.since, round)
  elseif is_told(era) and round < own.since then
    under_way = 'left' -- as those are that will be closed with these
  end
  own[under_way] = math.min(own[under_way] + units, MOST_OF_TOTAL)
end

local function close_of(own, which, units)
  local closed = math.min(units, own[which])
  own[which] = own[which] - closed
  return closed
end

-- What is under way is under way no more; how many of its units were known.
local function close_total(total, units, round, era)
  local own, known = own_of(total, era), 0
  if round < own.since then
    units = units - close_of(own, 'left', units)
  else
    known = close_of(own, round == total.round and 'open' or 'older', units)
  end
  if is_told(era) then
    known = known + close_of(own, 'open', units - known)
    known = known + close_of(own, 'older', units - known)
    local rest = units - known
    rest = rest - close_of(own, 'left', rest)
    own.owed = math.min(own.owed + rest, MOST_OF_TOTAL)
  end
  forget_when(own)
  return known
end

local function give_back_total(total, units, round, era)
  local known = close_total(total, units, round, era)
  total.used = math.max(total.used - known, 0)
  note_total(total, -known)
end

local function keep_total(total, units, round, era)
  local known = close_total(total, units, round, era)
  if known < units then
    add_total(total, units - known)
    -- In a round that has not ended nothing is forgotten: it will be told that they were taken.
    if not (is_told(era) and round == total.round) then
      total.approximate = 1
    end
  end
end

-- Begins a round; how many units are under way, and whether more may be.
local function begin_total(total, at)
  local under_way, left = 0, 0
  for _, own in pairs(total.owners) do
    if own.at > 0 and at - own.at > LONGEST then
      own.older, own.left, own.owed, own.at = 0, 0, 0, 0
    end
    if own.open > 0 or own.at == 0 then
      own.at = math.min(at, MOST_OF_TOTAL)
    end
    own.open, own.older = 0, math.min(own.open + own.older, MOST_OF_TOTAL)
    if own.gone then
      own.older, own.left = 0, math.min(own.left + own.older, MOST_OF_TOTAL)
      own.since = total.round + 1
    end
    forget_when(own)
    under_way, left = under_way + own.older, left + own.left
  end
  total.round, total.dirty = total.round + 1, true
  under_way = math.min(under_way, MOST_OF_TOTAL)
  return under_way, (under_way > 0 or left > 0) and 1 or 0
end

local function settle_total(total, count, checked)
  total.used, total.checked = math.max(math.min(count, MOST_OF_TOTAL), 0), checked
  total.basis, total.net, total.moves, total.dirty = total.round, 0, 0, true
end

-- The entries of a gateway. Many may be asked for, one after the other.
local function owners_of(total, gateway)
  if not total.by_gateway then
    total.by_gateway = {}
    for owner, own in pairs(total.owners) do
      local its = string.match(owner, '^[^.]*')
      total.by_gateway[its] = total.by_gateway[its] or {}
      table.insert(total.by_gateway[its], own)
    end
  end
  return total.by_gateway[gateway] or {}
end

-- By number, as `Change` says.
local CHANGE = {
  [0] = function(total, units) add_total(total, units) end,
  function(total, units, a)
    if total.used == 0 and total.checked == 0 then
      return -- nobody has counted any
    end
    if a == total.basis then
      total.used = math.max(total.used - units, 0)
    else
      total.approximate = 1
    end
    note_total(total, 0)
  end,
  function(total, units, a, b) give_back_total(total, units, a, b) end,
  function(total)
    total.approximate = 1
    note_total(total, 0)
  end,
  function(total)
    note_total(total, -total.used)
    total.used = 0
  end,
  function(total, _, a)
    total.used, total.dirty = math.max(total.used, math.min(a, MOST_OF_TOTAL)), true
  end,
  function(total, _, a, b)
    local under_way, is_doubtful = begin_total(total, b)
    settle_total(total, math.min(a, MOST_OF_TOTAL) + under_way, b)
    total.approximate = is_doubtful
  end,
  function(total, _, a)
    total.net, total.moves = begin_total(total, a)
  end,
  function(total, round, a, b)
    if round == total.round and total.round ~= total.basis then
      local is_doubtful = total.moves > 0
      settle_total(total, a + total.net, b)
      total.approximate = is_doubtful and 1 or 0
    end
  end,
  function() end,
  function(total, units, a, b) keep_total(total, units, a, b) end,
  function(total, units, a, b) take_total(total, units, a, b) end,
  function(total, _, a)
    if total.checked == 0 then
      total.used, total.approximate = math.max(total.used, math.min(a, MOST_OF_TOTAL)), 1
      total.dirty = true
    end
  end,
  -- This gateway seems to be gone: what it has under way is not for long.
  function(total, _, a, b)
    for _, own in ipairs(owners_of(total, string.format('%08x%08x', a, b))) do
      if not own.gone then
        own.gone, total.approximate = true, 1
        note_total(total, 0)
      end
    end
  end,
  -- Nothing of this gateway's era is under way, whatever became of its words.
  function(total, _, a)
    local owner = ARGV[3] .. '.' .. string.format('%.0f', a)
    if total.owners[owner] then
      total.owners[owner], total.by_gateway, total.dirty = nil, nil, true
    end
  end,
  -- This gateway has so many under way of a total that was lost. What was recalled of it has them,
  -- and what somebody has counted since does not.
  function(total, units, a)
    local own = own_of(total, a)
    local more = math.max(units - own.open - own.older, 0)
    own.older = own.older + more
    if more > 0 and total.checked > 0 then
      add_total(total, more)
    else
      note_total(total, more)
      total.used = math.max(total.used, own.older)
    end
    total.approximate = more > 0 and 1 or total.approximate
  end,
}

local cells = {}

local function open(index, kind, a)
  local cell = cells[index]
  if cell then
    return cell
  end
  if kind == SLIDING then
    cell = open_sliding(values[index], a)
  elseif kind == TOTAL then
    cell = open_total(values[index])
  elseif kind == DAY then
    local used = open_day(values[index])
    cell = { kind = DAY, used = used or 0, is_new = not used, change = 0, asked = 0, dirty = false }
  else
    open_slots(index)
    cell = { kind = RUNNING, used = redis.call('ZCARD', KEYS[index]), asked = 0 }
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
      local sum = math.max(there + units, 0)
      local entry = sum > 0 and pack('<BI4', slot, math.min(sum, MOST)) or ''
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
  return math.max((cell.step - age + RING) * cell.step_us - now, 1)
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

local function take(charge)
  local cell, cost = charge.cell, charge.cost
  if cell.kind == TOTAL then
    if cost > 0 then
      take_total(cell, cost, cell.round, charge.more)
    end
    return
  end
  if cost == 0 then
    return
  end
  cell.used = cell.used + cost
  if cell.kind == RUNNING then
    set_slot(KEYS[charge.index], member(charge.b), charge.a)
    return
  end
  -- Never so much more that the others would find less than a tenth.
  local more = math.max(math.min(charge.more, charge.quota - cell.used - floor(charge.quota / 10)), 0)
  charge.granted = more
  cell.used = cell.used + more
  cell.dirty = true
  if cell.kind == DAY then
    cell.change = cell.change + cost + more
  else
    cell.here = cell.here + cost
    -- They may be used until a step from now.
    cell.ahead = cell.ahead + more
  end
end

-- The charges of the item at hand; kept for the next, since a table costs more than its fields.
local charges = {}

local function decide(item)
  local earliest, latest, from = read('<dd', item, 2)
  if now < earliest or now > latest then
    return 'L'
  end
  local count = 0
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
      charge.granted = cell.round
    end
    cell.asked = 0
  end
  for i = 1, count do
    local charge = charges[i]
    if not charge.report then
      charge.cell.asked = charge.cell.asked + charge.cost
    end
  end
  local denied = false
  for i = 1, count do
    local charge = charges[i]
    charge.needs = charge.cost > 0 and charge.cell.asked or 1
    local is_over = not charge.report and charge.seen + charge.needs > charge.quota
    denied = denied or is_over and not charge.lax
  end
  local reply = { denied and 'N' or 'A' }
  for i = 1, count do
    local charge = charges[i]
    if denied then
      if not charge.report and not charge.lax and charge.seen + charge.needs > charge.quota then
        charge.time = wait(charge.cell, charge.quota, charge.needs)
      end
    elseif not charge.report then
      take(charge)
      if charge.cell.kind == TOTAL and charge.seen + charge.needs > charge.quota then
        charge.time = -1
      end
    end
  end
  for i = 1, count do
    local charge = charges[i]
    if charge.report and not denied then
      local then_used = charge.cost > 0 and charge.cell.used + charge.cost or charge.seen + 1
      if then_used > charge.quota then
        charge.time = -1
      else
        take(charge)
      end
    end
  end
  for i = 1, count do
    local charge = charges[i]
    if not denied and charge.time == 0 then
      charge.time = resets_in(charge.cell)
    end
    reply[i + 1] = pack('<I4I4d', math.min(charge.seen, MOST), charge.granted, charge.time)
  end
  for i = 1, count do
    local charge = charges[i]
    if charge.cell.kind == TOTAL then
      local high = floor(charge.seen / (MOST + 1))
      reply[#reply + 1] = pack('<I4I4d', high, charge.seen - high * (MOST + 1), charge.cell.checked)
    end
  end
  for i = 1, count do
    local charge = charges[i]
    if charge.cell.kind == TOTAL then
      reply[#reply + 1] = pack('<I4I4d', charge.cell.basis, 0, 0)
    end
  end
  return table.concat(reply)
end

-- Gives units back to where they were taken from, or puts them there.
local function settle(item, sign)
  local from = 2
  while from <= #item do
    local index, kind, units, a, b
    index, kind, units, a, b, from = read('<I2BI4dd', item, from)
    local cell = open(index, kind, a)
    if kind == RUNNING then
      if sign < 0 then
        redis.call('ZREM', KEYS[index], member(b))
        cells[index] = nil -- counted again when it is asked next
      end
    elseif kind == TOTAL then
      give_back_total(cell, units, b, a)
    elseif kind == DAY then
      local change = math.max(sign * units, -cell.used)
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

-- A task whose name is held already holds a second slot: the n-th is called task .. n.
local MOST_OF_A_NAME = 16

local function hold(item)
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

local function keep(item)
  local index, longest_us, n, from = read('<I2dd', item, 2)
  local key, name = KEYS[index], 't' .. sub(item, from) .. string.format('%.0f', n)
  open_slots(index)
  if not redis.call('ZSCORE', key, name) then
    set_slot(key, name, longest_us)
  end
  cells[index] = nil
  return ''
end

local function finish(item)
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

local function empty(item)
  local from, index = 2, nil
  while from <= #item do
    index, from = read('<I2', item, from)
    redis.call('DEL', KEYS[index])
    cells[index], values[index] = nil, false
  end
  return ''
end

local PART = 23

local function change(item, from)
  local last, reply = {}, {}
  for at = from, #item, PART do
    last[read('<I2', item, at)] = at
  end
  for at = from, #item, PART do
    local index, how, units, a, b = read('<I2BI4dd', item, at)
    local total = open(index, TOTAL, 0)
    CHANGE[how](total, units, a, b)
    reply[#reply + 1] = last[index] == at and total_text(total) or ''
  end
  return 'V' .. table.concat(reply, '\n')
end

local function change_in_time(item)
  local earliest, latest, from = read('<dd', item, 2)
  if now < earliest or now > latest then
    return 'L'
  end
  return change(item, from)
end

local WORK = {
  D = decide,
  B = function(item) return settle(item, -1) end,
  P = function(item) return settle(item, 1) end,
  R = function(item) return renew(item, false) end,
  S = function(item) return renew(item, true) end,
  H = hold,
  K = keep,
  F = finish,
  E = empty,
  C = function(item) return change(item, 2) end,
  W = change_in_time,
}

for i = 4, #ARGV do
  local item = ARGV[i]
  replies[i - 2] = WORK[sub(item, 1, 1)](item)
end

for index, cell in pairs(cells) do
  if cell.dirty then
    local key = KEYS[index]
    if cell.kind == TOTAL then
      -- The one kind that never expires.
      local text, is_at_rest = total_text(cell)
      if is_at_rest and cell.used == 0 and cell.checked == 0 and cell.approximate == 0
        and cell.round == cell.basis then
        redis.call('DEL', key)
      else
        redis.call('SET', key, text)
      end
    elseif cell.kind == SLIDING then
      flush(cell)
      local lives_ms = floor((RING + 2) * cell.step_us / 1000) + IDLE_LIVES_MS
      redis.call('SET', key, pack('<dI4', cell.step, math.min(cell.used, MOST)) .. cell.steps, 'PX', lives_ms)
    elseif not cell.is_new then
      redis.call('INCRBY', key, cell.change)
    else
      redis.call('SET', key, cell.change, 'PX', DAY_LIVES_MS)
    end
  end
end
return replies
