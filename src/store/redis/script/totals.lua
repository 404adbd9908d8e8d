local MOST_OF_TOTAL = 9007199254740991
local LONGEST = 3600        -- seconds: no call is under way for longer

-- A total, as `Total::to_text` writes it, and behind ' @' whose units are under way, with commas
-- between: `ID.era:open/older/since/at/left/owed`, and `!` behind it where that gateway is thought
-- to be gone. A gateway has an entry for each of its eras (`under_way.rs`), and closes units of its
-- own alone. `left`: units that were under way when an import or a listing came and the gateway was
-- thought to be gone. They are not on top of it, and mark it: they may be made yet. Those of the
-- entry were taken in round `since` or later, which tells them from these. Of units that were taken
-- without the store the gateway tells in words, which come in any order; their eras are odd. `owed`:
-- so many were closed before it was heard that they had been taken. What else is there is nothing
-- of ours. The third number is twice the time when the store had last been found to lack what it
-- had, when somebody last counted, and 1 more where the total has been approximate since.
local TOTAL_TEXT = '^(%d+) (%d+) (%d+) (%d+) (%d+) (-?%d+) (%d+)(.*)$'
local UNDER_WAY = '^ (%d+) (%d+) (%d+)$'
local OWNED = '^([^:]+):(%d+)/(%d+)/(%d+)/(%d+)/(%d+)/(%d+)(!?)$'
local NOBODY = '-'
local FOUND = tonumber(ARGV[4])
local EXACT = 2 * FOUND

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
    approximate = tonumber(approximate or EXACT), round = tonumber(round or first),
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
local function mark(total)
  total.approximate = total.approximate - total.approximate % 2 + 1
end

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
    mark(total) -- what has come since may have them
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
      mark(total)
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
  return under_way, under_way > 0 or left > 0
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
      mark(total)
    end
    note_total(total, 0)
  end,
  function(total, units, a, b) give_back_total(total, units, a, b) end,
  function(total)
    mark(total)
    note_total(total, 0)
  end,
  function(total)
    note_total(total, -total.used)
    total.used = 0
  end,
  function(total, _, a, b)
    if b == 0 or b - 1 == total.round then
      total.used, total.dirty = math.max(total.used, math.min(a, MOST_OF_TOTAL)), true
    end
  end,
  function(total, _, a, b)
    local under_way, is_doubtful = begin_total(total, b)
    settle_total(total, math.min(a, MOST_OF_TOTAL) + under_way, b)
    total.approximate = EXACT + (is_doubtful and 1 or 0)
  end,
  function(total, _, a)
    local under_way, is_doubtful = begin_total(total, a)
    total.net, total.moves = under_way, is_doubtful and 1 or 0
  end,
  function(total, round, a, b)
    if round == total.round and total.round ~= total.basis then
      local is_doubtful = total.moves > 0
      settle_total(total, a + total.net, b)
      total.approximate = EXACT + (is_doubtful and 1 or 0)
    end
  end,
  function() end,
  function(total, units, a, b) keep_total(total, units, a, b) end,
  function(total, units, a, b) take_total(total, units, a, b) end,
  function(total, _, a)
    if total.checked == 0 or floor(total.approximate / 2) ~= FOUND then
      total.used, total.dirty = math.max(total.used, math.min(a, MOST_OF_TOTAL)), true
      mark(total)
    end
  end,
  -- This gateway seems to be gone: what it has under way is not for long.
  function(total, _, a, b)
    for _, own in ipairs(owners_of(total, string.format('%08x%08x', a, b))) do
      if not own.gone then
        own.gone = true
        mark(total)
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
    if more > 0 then
      mark(total)
    end
  end,
}

KINDS[TOTAL] = {
  open = function(index)
    return open_total(values[index])
  end,
  take = function(total, charge)
    take_total(total, charge.cost, total.round, charge.more)
  end,
  settle = function(total, _, units, era, round)
    give_back_total(total, math.abs(units), round, era)
  end,
  -- What a decision says of them, after all of its charges.
  tell = function(charges, count)
    local counts, rounds = {}, {}
    for i = 1, count do
      local charge = charges[i]
      if charge.cell.kind == TOTAL then
        local high = floor(charge.seen / (MOST + 1))
        local low = charge.seen - high * (MOST + 1)
        counts[#counts + 1] = pack('<I4I4d', high, low, charge.cell.checked)
        rounds[#rounds + 1] = pack('<I4I4d', charge.cell.basis, 0, 0)
      end
    end
    return table.concat(counts) .. table.concat(rounds)
  end,
  write = function(total, key)
    -- The one kind that never expires.
    local text, is_at_rest = total_text(total)
    if is_at_rest and total.used == 0 and total.checked == 0 and total.approximate % 2 == 0
      and total.round == total.basis then
      redis.call('DEL', key)
    else
      redis.call('SET', key, text)
    end
  end,
}

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

WORK.C = function(item) return change(item, 2) end
WORK.W = function(item)
  local earliest, latest, from = read('<dd', item, 2)
  if now < earliest or now > latest then
    return 'L'
  end
  return change(item, from)
end

-- A store that lacks this gateway's last sign is an older one: restored, or a replica without the
-- last writes. A beat sees to it, and until then it is not signed again.
WORK.N = function(item)
  local index, last = read('<I2d', item, 2)
  local known = tonumber(redis.call('ZSCORE', KEYS[index], ARGV[3]) or 0)
  if known < last then
    return 'O'
  end
  local sign = math.max(now, known + 1)
  redis.call('ZADD', KEYS[index], sign, ARGV[3])
  return string.format('%.0f', sign)
end
