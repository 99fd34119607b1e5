-- What script/soak asks of the example web: of twenty requests, two write, and each page is among the others.

local pages = { "/health", "/status", "/entries.json", "/entries.json", "/entries.json" }
local turn = 0

function request()
    turn = turn % 20 + 1
    if turn == 1 then
        local form = { ["Content-Type"] = "application/x-www-form-urlencoded" }
        return wrk.format("POST", "/entries", form, "text=soak")
    elseif turn == 2 then
        return wrk.format("POST", "/entries/1/finish")
    end
    return wrk.format("GET", pages[turn - 2] or "/")
end

-- For script/soak, a line each. Times are in microseconds.
function done(summary, latency)
    local errors = summary.errors
    local told = {
        requests = summary.requests,
        sockets = errors.connect + errors.read + errors.write,
        late = errors.timeout,
        refused = errors.status,
        microseconds = summary.duration,
        median = latency:percentile(50),
        most = latency:percentile(99),
        longest = latency.max,
    }
    for name, value in pairs(told) do
        print(string.format("soak %s %d", name, value))
    end
end
