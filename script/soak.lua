-- The requests of script/soak to the example web. Of 20 requests, 2 write; the others cover all pages.

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

-- Prints a line for each result, which script/soak reads. Times are in microseconds.
function done(summary, latency)
    local errors = summary.errors
    local results = {
        requests = summary.requests,
        connection_errors = errors.connect + errors.read + errors.write,
        timeouts = errors.timeout,
        error_answers = errors.status,
        microseconds = summary.duration,
        median = latency:percentile(50),
        percentile_99 = latency:percentile(99),
        maximum = latency.max,
    }
    for name, value in pairs(results) do
        print(string.format("soak %s %d", name, value))
    end
end
