-- Runs a script for Pktgen without Pktgen: `lua5.4 stub.lua SCRIPT`, in virtual time.
--
-- Two things are checked.  Every call must be one that Pktgen has, with the arguments that it takes (API,
-- below; from the sources of Pktgen 24 and 25, lpktgenlib.c), and no field may be read that Pktgen does not
-- return: anything else ends the stub with an error.  And the numbers must come out, because the router
-- behind the ports is known: an ideal one, which forwards STUB_MPPS million packets a second, of any size,
-- and drops what is more.
--
-- Where Pktgen surprises, the stub does as Pktgen does:
--   * counters are seen as they were at the last full second, and arrivals a second later than departures;
--   * a percentage of the rate is of packets of the single mode's size, in range mode too;
--   * a range is read when sending starts.

local STUB_MPPS = tonumber(os.getenv("STUB_MPPS") or "7.3")
local STUB_LINK_MBPS = tonumber(os.getenv("STUB_LINK_MBPS") or "10000")
-- The router sends what it forwards out of the port where it came in: direct routing over one cable.
local STUB_ONE_ARMED = os.getenv("STUB_ONE_ARMED") == "1"
-- Percent of the packets that are lost at any rate.
local STUB_LOSS = tonumber(os.getenv("STUB_LOSS") or "0")
-- Pktgen between the middle of 2024 and May 2025: every size of a range is 1518.
local STUB_ONE_SIZE = os.getenv("STUB_ONE_SIZE") == "1"

local function fail(...)
    error(string.format(...), 0)
end

-- A table that has these fields and no others.
local function strict(what, fields)
    return setmetatable(fields, {
        __index = function(_, key) fail("%s has no %s", what, tostring(key)) end,
        __newindex = function(_, key) fail("%s.%s cannot be set", what, tostring(key)) end,
    })
end

--------------------------------------------------------------------------------------------------------------
-- The ports, the wire and the router
--------------------------------------------------------------------------------------------------------------

local clock_ms = 0
local ports = {}
for pid = 0, 1 do
    ports[pid] = {
        peer = STUB_ONE_ARMED and pid or 1 - pid,
        single = { size = 64, rate = 100 },
        range = {},
        sent = 0, sent_bytes = 0, received = 0, late = 0,
        seen = { sent = 0, sent_bytes = 0, received = 0 },
        latency = { rate = 10000 },
    }
end
-- The clients whose connections the router knows.
local open = {}

local function wire(size)
    return STUB_LINK_MBPS * 1e6 / ((size + 20) * 8)
end

local function is_crowd(side)
    return side.ip.inc ~= "0.0.0.0" or side.port.inc ~= 0
end

local function name_of(side)
    return table.concat({ side.ip.min, side.ip.max, side.port.min, side.port.max }, " ")
end

-- How many of these packets reach the other side.  Replies do when clients have been there before.
local function forwarded(port, packets, seconds)
    local range = port.range
    if is_crowd(range.src) then
        open[name_of(range.src)] = true
    elseif not open[name_of(range.dst)] then
        return 0
    end
    return math.floor(math.min(packets, STUB_MPPS * 1e6 * seconds) * (1 - STUB_LOSS / 100))
end

local function move(port, seconds)
    local single, size = port.single, port.built.size
    local pps = math.min(single.rate / 100 * wire(single.size), wire(size))
    local packets = math.floor(pps * seconds)
    local peer = ports[port.peer]
    port.sent = port.sent + packets
    port.sent_bytes = port.sent_bytes + packets * (size - 4)
    peer.received = peer.received + forwarded(port, packets, seconds)

    if port.latency.on and peer.latency.on then
        local load = math.min(pps / (STUB_MPPS * 1e6), 0.999)
        local avg = 8 + load / (1 - load)
        local seen = peer.latency
        seen.num = (seen.num or 0) + math.floor(seconds * 1e6 / port.latency.rate)
        seen.min, seen.avg, seen.max = 8, avg, 3 * avg
    end
end

local function advance(ms)
    local target = clock_ms + ms
    while clock_ms < target do
        local step = math.min(target, (clock_ms // 1000 + 1) * 1000) - clock_ms
        for pid = 0, 1 do
            if ports[pid].sending then
                move(ports[pid], step / 1000)
            end
        end
        clock_ms = clock_ms + step
        if clock_ms % 1000 == 0 then
            for pid = 0, 1 do
                local port = ports[pid]
                port.seen = { sent = port.sent, sent_bytes = port.sent_bytes, received = port.late }
                port.late = port.received
            end
        end
    end
end

-- What a range is when sending starts: every field must have been set.
local function build(port)
    if not port.range_on then
        fail("start: this stub sends ranges only, and set_range is not on")
    end
    local range = port.range
    local needed = { "dst_mac", "ip_proto", "src_ip", "dst_ip", "src_port", "dst_port", "pkt_size" }
    for _, field in ipairs(needed) do
        if not range[field] then
            fail("start: range.%s has not been set", field)
        end
    end
    range.src = { ip = range.src_ip, port = range.src_port }
    range.dst = { ip = range.dst_ip, port = range.dst_port }
    port.built = { size = STUB_ONE_SIZE and 1518 or range.pkt_size.start }
end

--------------------------------------------------------------------------------------------------------------
-- Arguments
--------------------------------------------------------------------------------------------------------------

local function is_octets(value)
    local octets = { value:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$") }
    for _, octet in ipairs(octets) do
        if tonumber(octet) > 255 then
            return false
        end
    end
    return #octets == 4
end

local function integer(low, high)
    return function(value)
        return math.type(value) and math.tointeger(value) and value >= low and value <= high
    end
end

local function one_of(...)
    local words = {}
    for _, word in ipairs { ... } do
        words[word] = true
    end
    return function(value) return words[value] end
end

local function string_that(check)
    return function(value) return type(value) == "string" and check(value) end
end

-- Pktgen takes a number for a bit mask of ports in some places and for a port in others, so none is taken.
local portlist = string_that(function(value) return ports[tonumber(value)] ~= nil end)
local state = one_of("on", "off", "enable", "disable")
local step = one_of("start", "min", "max", "inc")
local ip = string_that(is_octets)
local mac = string_that(function(value) return value:match("^%x%x" .. (":%x%x"):rep(5) .. "$") end)
local protocol = one_of("udp", "tcp", "icmp")
local uint16 = integer(0, 65535)
local milliseconds = integer(0, 1 << 31)
local frame = integer(64, 1518)

--------------------------------------------------------------------------------------------------------------
-- The API
--------------------------------------------------------------------------------------------------------------

local function port_of(list)
    return ports[tonumber(list)]
end

-- Ranges and the like are taken up at the next start only; a script that changes them before is wrong.
local function resting(list)
    local port = port_of(list)
    if port.sending then
        fail("port %s is changed while it sends", list)
    end
    return port
end

local function range_field(field)
    return function(list, what, value)
        local range = resting(list).range
        range[field] = range[field] or {}
        range[field][what] = value
    end
end

local function of_port(list, value)
    return strict("what Pktgen returns", { [tonumber(list)] = value, n = 1 })
end

-- Of `pktgen.set`: what it sets, and to what.
local SETTABLE = {
    count = integer(0, 1 << 32),
    size = frame,
    rate = function(value) return math.type(value) and value >= 0.01 and value <= 100 end,
    burst = integer(1, 128),
    sport = uint16,
    dport = uint16,
    ttl = integer(1, 255),
}

-- By name: what each argument must be, one list for every form, and then what the call does.  A function of
-- Pktgen that a script begins to use gets its line here.
local API = {
    screen = { { state }, run = function() end },
    set = {
        { portlist, one_of("count", "size", "rate", "burst", "sport", "dport", "ttl"), math.type },
        run = function(list, what, value)
            if not SETTABLE[what](value) then
                fail("pktgen.set: %s cannot be %s", what, tostring(value))
            end
            local port = what == "rate" and port_of(list) or resting(list)
            port.single[what] = value
        end,
    },
    set_mac = {
        { portlist, one_of("src", "dst"), mac },
        run = function(list, what, value) resting(list).single[what .. "_mac"] = value end,
    },
    set_proto = {
        { portlist, protocol },
        run = function(list, value) resting(list).single.proto = value end,
    },
    -- A source is written with the length of its prefix.
    set_ipaddr = {
        { portlist, one_of("dst"), ip },
        { portlist, one_of("src"), string_that(function(value)
            local address, length = value:match("^(.*)/(%d+)$")
            return address and is_octets(address) and tonumber(length) <= 32
        end) },
        run = function(list, what, value) resting(list).single[what] = value end,
    },
    set_range = {
        { portlist, state },
        run = function(list, value) resting(list).range_on = value == "on" or value == "enable" end,
    },
    latency = {
        { portlist, state },
        { portlist, one_of("rate"), integer(1, 1000000) },
        { portlist, one_of("entropy"), uint16 },
        run = function(list, what, value)
            local port = resting(list)
            if what == "rate" then
                port.latency.rate = value
            elseif what ~= "entropy" then
                port.latency.on = what == "on" or what == "enable"
            end
        end,
    },
    start = {
        { portlist },
        run = function(list)
            build(resting(list))
            port_of(list).sending = true
        end,
    },
    stop = { { portlist }, run = function(list) port_of(list).sending = false end },
    delay = { { milliseconds }, run = advance },
    clear = {
        { portlist },
        run = function(list)
            local port = resting(list)
            port.sent, port.sent_bytes, port.received, port.late = 0, 0, 0, 0
            port.seen = { sent = 0, sent_bytes = 0, received = 0 }
            port.latency.num = nil
        end,
    },
    linkState = {
        { portlist },
        run = function(list) return of_port(list, string.format("<UP-%d-FD>", STUB_LINK_MBPS)) end,
    },
    portStats = {
        { portlist, one_of("port", "rate") },
        run = function(list, what)
            if what ~= "port" then
                fail("pktgen.portStats: this stub knows no rates")
            end
            local seen = port_of(list).seen
            return of_port(list, strict("portStats", {
                ipackets = seen.received,
                opackets = seen.sent,
                ibytes = 0,
                obytes = seen.sent_bytes,
                ierrors = 0,
                oerrors = 0,
                rx_nombuf = 0,
                imissed = 0,
            }))
        end,
    },
    pktStats = {
        { portlist },
        run = function(list)
            local seen = port_of(list).latency
            return of_port(list, strict("pktStats", {
                latency = strict("latency", {
                    num_pkts = seen.num or 0,
                    num_skipped = 0,
                    jitter_count = 0,
                    min_us = seen.num and seen.min or 0.0,
                    avg_us = seen.num and seen.avg or 0.0,
                    max_us = seen.num and seen.max or 0.0,
                }),
            }))
        end,
    },
}

local RANGE = {
    dst_mac = { { portlist, step, mac }, run = range_field("dst_mac") },
    src_mac = { { portlist, step, mac }, run = range_field("src_mac") },
    ip_proto = {
        { portlist, protocol },
        run = function(list, value) resting(list).range.ip_proto = value end,
    },
    src_ip = { { portlist, step, ip }, run = range_field("src_ip") },
    dst_ip = { { portlist, step, ip }, run = range_field("dst_ip") },
    src_port = { { portlist, step, uint16 }, run = range_field("src_port") },
    dst_port = { { portlist, step, uint16 }, run = range_field("dst_port") },
    pkt_size = {
        { portlist, one_of("start", "min", "max"), frame },
        { portlist, one_of("inc"), integer(0, 1518) },
        run = range_field("pkt_size"),
    },
}

local function fits(form, arguments)
    if arguments.n ~= #form then
        return false
    end
    for index, check in ipairs(form) do
        if arguments[index] == nil or not check(arguments[index]) then
            return false
        end
    end
    return true
end

local function checked(name, entry)
    return function(...)
        local arguments = table.pack(...)
        for _, form in ipairs(entry) do
            if fits(form, arguments) then
                return entry.run(...)
            end
        end
        local words = {}
        for index = 1, arguments.n do
            words[index] = type(arguments[index]) == "string" and string.format("%q", arguments[index])
                or tostring(arguments[index])
        end
        fail("%s does not take (%s)", name, table.concat(words, ", "))
    end
end

local function module(name, api, fields)
    for key, entry in pairs(api) do
        fields[key] = checked(name .. "." .. key, entry)
    end
    return strict(name, fields)
end

pktgen = module("pktgen", API, {
    range = module("pktgen.range", RANGE, {}),
    info = strict("pktgen.info", { Pktgen_Version = "stub", DPDK_Version = "none" }),
})

--------------------------------------------------------------------------------------------------------------

local script, message = loadfile(assert(arg[1], "usage: lua5.4 stub.lua SCRIPT"))
local fine = script ~= nil
if fine then
    fine, message = xpcall(script, function(error) return debug.traceback(error, 2) end)
end
for pid = 0, 1 do
    if fine and (ports[pid].sending or ports[pid].latency.on) then
        fine, message = false, "port " .. pid .. " is left sending, or with latency enabled"
    end
end
if not fine then
    io.stderr:write(message, "\n")
    os.exit(1)
end
