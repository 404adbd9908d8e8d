-- Does all items, and then writes each counter once.

for i = 5, #ARGV do
  local item = ARGV[i]
  replies[i - 3] = WORK[sub(item, 1, 1)](item)
end

for index, cell in pairs(cells) do
  if cell.dirty then
    local key = KEYS[index]
    if cell.kind == SLIDING then
      flush(cell)
      local lives_ms = floor((RING + 2) * cell.step_us / 1000) + IDLE_LIVES_MS
      redis.call('SET', key, pack('<dI4', cell.step, math.min(cell.used, MOST)) .. cell.steps, 'PX', lives_ms)
    elseif cell.kind ~= DAY then
      KINDS[cell.kind].write(cell, key)
    elseif not cell.is_new then
      redis.call('INCRBY', key, cell.change)
    else
      redis.call('SET', key, cell.change, 'PX', DAY_LIVES_MS)
    end
  end
end
return replies
