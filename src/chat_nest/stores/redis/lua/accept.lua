-- Accept this partition as it is for callers that have seen another epoch; stands alone. KEYS[1] the partition's epoch.
-- ARGV: 1 the epoch to set if there is none. Answers the epoch.

local root = string.sub(KEYS[1], 1, -6)
local epoch = redis.call('GET', KEYS[1]) or ARGV[1]
redis.call('SET', KEYS[1], epoch)
redis.call('SET', root .. 'accepted', epoch)
redis.call('DEL', root .. 'doubted')
return {'ok', epoch}
