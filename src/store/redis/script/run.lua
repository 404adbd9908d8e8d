-- Does all items, and then writes each counter once.

for i = 5, #ARGV do
  local item = ARGV[i]
  replies[i - 3] = WORK[sub(item, 1, 1)](item)
end

local call = redis.call
for index, cell in pairs(cells) do
  if cell.dirty then
    local key = KEYS[index]
    if cell.kind == SLIDING then
      flush(cell)
      local text = pack('<dI4', cell.step, min(cell.used, MOST)) .. cell.steps
      if cell.lasts then
        call('SET', key, text, 'KEEPTTL')
      else
        call('SET', key, text, 'PX', floor((RING + 2) * cell.step_us / 1000) + IDLE_LIVES_MS)
      end
    elseif cell.kind ~= DAY then
      KINDS[cell.kind].write(cell, key)
    elseif not cell.is_new then
      call('INCRBY', key, cell.change)
    else
      call('SET', key, cell.change, 'PX', DAY_LIVES_MS)
    end
  end
end
return replies
