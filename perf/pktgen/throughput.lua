-- The throughput and the latency of a router with RVS, measured by Pktgen-DPDK on a second machine.
--
--     tester port TESTER_WAN --- [wan] router [lan] --- tester port TESTER_LAN
--     plays the clients                                 plays the real server
--
-- For every frame size: the highest rate whose loss is within a tolerance, by the binary search of RFC 2544
-- (section 26.1), then the latency at parts of that rate.  Start it with `pktgen ... -f throughput.lua`;
-- README.md beside it tells the rest.  It waits for no key and writes the result after every size, so what is
-- there survives if it ends early.

local function text(name, default)
    local value = os.getenv(name)
    return value ~= nil and value ~= "" and value or default
end

local function number(name, default)
    return assert(tonumber(text(name, default)), name .. " must be a number")
end

local function whole(name, default)
    return assert(math.tointeger(number(name, default)), name .. " must be a whole number")
end

local function numbers(name, default)
    local list = {}
    for item in text(name, default):gmatch("[^,%s]+") do
        list[#list + 1] = assert(tonumber(item), name .. " must be numbers with commas between")
    end
    assert(#list > 0, name .. " is empty")
    return list
end

local function endpoint(name, default)
    local ip, port = text(name, default):match("^(%d+%.%d+%.%d+%.%d+):(%d+)$")
    assert(ip, name .. " must be ADDRESS:PORT")
    return { ip = ip, ips = 1, port = tonumber(port), ports = 1 }
end

-- Settings, each by an environment variable of its name.
local TESTER_WAN = text("TESTER_WAN", "0")          -- Pktgen's number of the port that is cabled to wan
local TESTER_LAN = text("TESTER_LAN", "1")          -- and to lan; the same for one-armed direct routing
local WAN_MAC = text("WAN_MAC")                     -- of the router's port: `ip link show wan`
local LAN_MAC = text("LAN_MAC")                     -- for DIRECTION=out only
local DIRECTION = text("DIRECTION", "in")           -- in: clients to server; out: the server's replies
local SERVICE = endpoint("SERVICE", "192.0.2.10:443")
local SERVER = endpoint("SERVER", "10.0.0.11:443")
local SIZES = numbers("SIZES", "64,128,256,512,1024,1280,1518")   -- of frames, with their FCS
local TOLERANCES = numbers("TOLERANCES", "0,0.001") -- how much loss passes, in percent
local LOADS = numbers("LOADS", "10,50,90")          -- where latency is measured, in percent of the throughput
local TRIAL_SECONDS = number("TRIAL_SECONDS", 20)   -- RFC 2544 wants 60
local RESOLUTION = number("RESOLUTION", 0.5)        -- where the search ends, in percent of the link's rate
local RESULT = text("RESULT", "throughput.json")
local LABEL = text("LABEL", "")                     -- goes into the result as it is: NIC, cores, versions

-- Range mode steps all fields at once, so there are as many flows as the least common multiple of their
-- lengths: a prime number of addresses times the ports.
local CLIENTS = {
    ip = text("CLIENTS", "198.18.0.1"),
    ips = whole("SOURCES", 65521),
    port = whole("SOURCE_PORT", 1024),
    ports = whole("SOURCE_PORTS", 16),
}

-- The port of Pktgen's latency probes cannot be chosen.  They go from it and to it, so that a reply has the
-- very same ports; the router has a service there too.
local PROBE_PORT = 1028
local PROBE_EVERY_US = 1000

-- Pktgen reads the NIC's counters once a second.
local REFRESH_MS = 1500
local FCS = 4
local PREAMBLE_AND_GAP = 20

local FORTH = { tx = TESTER_WAN, rx = TESTER_LAN, mac = WAN_MAC, from = CLIENTS, to = SERVICE }
local BACK = { tx = TESTER_LAN, rx = TESTER_WAN, mac = LAN_MAC, from = SERVER, to = CLIENTS }

local check_settings, prepare, resize, first_light, search, latencies, save, report, flow_count

local function main()
    local way = check_settings()
    local result = {
        label = LABEL,
        tool = { pktgen = pktgen.info.Pktgen_Version, dpdk = pktgen.info.DPDK_Version },
        direction = DIRECTION,
        protocol = "udp",
        flows_configured = flow_count(),
        link_mbps = way.link_mbps,
        trial_seconds = TRIAL_SECONDS,
        resolution_percent = RESOLUTION,
        sizes = {},
    }
    prepare(way)
    for _, size in ipairs(SIZES) do
        resize(way, size)
        local entry = {
            size = size,
            line_mpps = way.line_mpps,
            loss_percent_at_rest = first_light(way, size),
            throughput = {},
            latency = {},
        }
        local trials = {}
        local best
        for _, tolerance in ipairs(TOLERANCES) do
            local found = search(way, tolerance, trials)
            entry.throughput[#entry.throughput + 1] = found
            best = best or found.rate_percent > 0 and found or nil
        end
        entry.latency = best and latencies(way, best.rate_percent) or {}
        result.sizes[#result.sizes + 1] = entry
        save(result)
        report(entry)
    end
    print("written to " .. RESULT)
end

-- What can be known to be wrong before a packet is sent.
function check_settings()
    assert(pktgen.pktStats and pktgen.latency,
        "this Pktgen has no pktgen.pktStats, where latency is read: README.md, versions")
    assert(DIRECTION == "in" or DIRECTION == "out", "DIRECTION must be in or out")
    assert(TRIAL_SECONDS > 0 and RESOLUTION >= 0.01, "TRIAL_SECONDS or RESOLUTION is too small")
    assert(WAN_MAC, "WAN_MAC must be set: the MAC of the router's wan port")
    assert(DIRECTION == "in" or LAN_MAC, "LAN_MAC must be set: the MAC of the router's lan port")
    for _, port in ipairs { TESTER_WAN, TESTER_LAN } do
        assert(port:match("^%d+$"), "TESTER_WAN and TESTER_LAN must be port numbers")
    end
    local way = DIRECTION == "in" and FORTH or BACK
    local state = pktgen.linkState(way.tx)[tonumber(way.tx)]
    way.link_mbps = tonumber(state:match("UP%-(%d+)"))
    assert(way.link_mbps, "the link of port " .. way.tx .. " is " .. state)
    return way
end

--------------------------------------------------------------------------------------------------------------
-- What is sent
--------------------------------------------------------------------------------------------------------------

local function add(ip, n)
    local value = 0
    for octet in ip:gmatch("%d+") do
        value = value << 8 | tonumber(octet)
    end
    value = value + n
    return string.format("%d.%d.%d.%d", value >> 24 & 255, value >> 16 & 255, value >> 8 & 255, value & 255)
end

local function set_side(port, set_ip, set_port, side)
    set_ip(port, "start", side.ip)
    set_ip(port, "min", side.ip)
    set_ip(port, "max", add(side.ip, side.ips - 1))
    set_ip(port, "inc", side.ips > 1 and "0.0.0.1" or "0.0.0.0")
    set_port(port, "start", side.port)
    set_port(port, "min", side.port)
    set_port(port, "max", side.port + side.ports - 1)
    set_port(port, "inc", side.ports > 1 and 1 or 0)
end

local function aim(way)
    local port, range = way.tx, pktgen.range
    range.dst_mac(port, "start", way.mac)
    range.ip_proto(port, "udp")
    set_side(port, range.src_ip, range.src_port, way.from)
    set_side(port, range.dst_ip, range.dst_port, way.to)
    pktgen.set_range(port, "on")
    pktgen.set(port, "count", 0)

    -- Probes are made from the settings of single mode when latency is enabled.
    pktgen.set_mac(port, "dst", way.mac)
    pktgen.set_proto(port, "udp")
    pktgen.set_ipaddr(port, "src", way.from.ip .. "/32")
    pktgen.set_ipaddr(port, "dst", way.to.ip)
    pktgen.set(port, "sport", PROBE_PORT)
    for _, either in ipairs { way.tx, way.rx } do
        pktgen.latency(either, "rate", PROBE_EVERY_US)
    end
end

local function probes(way, state)
    pktgen.latency(way.tx, state)
    if way.rx ~= way.tx then
        pktgen.latency(way.rx, state)
    end
end

function resize(way, size)
    for _, what in ipairs { "start", "min", "max" } do
        pktgen.range.pkt_size(way.tx, what, size)
    end
    pktgen.range.pkt_size(way.tx, "inc", 0)
    -- Of this size Pktgen computes how many packets a second a percentage is, in range mode too.
    pktgen.set(way.tx, "size", size)
    way.line_mpps = way.link_mbps / ((size + PREAMBLE_AND_GAP) * 8)
end

function prepare(way)
    pktgen.screen("off")
    pktgen.stop(TESTER_WAN)
    pktgen.stop(TESTER_LAN)
    aim(way)
    if DIRECTION == "out" then
        -- A reply belongs to a connection, and clients open those.
        aim(FORTH)
        FORTH.link_mbps = way.link_mbps
        resize(FORTH, 64)
        probes(FORTH, "enable")
        pktgen.set(FORTH.tx, "rate", 1)
        pktgen.start(FORTH.tx)
        pktgen.delay(10000)
        pktgen.stop(FORTH.tx)
        probes(FORTH, "disable")
    end
end

function flow_count()
    local a, b = CLIENTS.ips, CLIENTS.ports
    while b > 0 do
        a, b = b, a % b
    end
    return CLIENTS.ips * CLIENTS.ports // a
end

--------------------------------------------------------------------------------------------------------------
-- What arrives
--------------------------------------------------------------------------------------------------------------

local function counters(way)
    local function stats(port)
        return pktgen.portStats(port, "port")[tonumber(port)]
    end
    local tx, rx = stats(way.tx), stats(way.rx)
    return {
        sent = tx.opackets,
        sent_bytes = tx.obytes,
        received = rx.ipackets,
        missed = rx.imissed + rx.rx_nombuf + rx.ierrors,
    }
end

-- The counters when nothing moves any more: a fixed pause would not know how long the router's queues, the
-- drivers and Pktgen's own refresh take.
local function counters_at_rest(way)
    local last
    for _ = 1, 20 do
        pktgen.delay(REFRESH_MS)
        local now = counters(way)
        if last and now.sent == last.sent and now.received == last.received then
            return now
        end
        last = now
    end
    error("the counters do not come to rest: somebody else sends to port " .. way.rx, 0)
end

local function trial(way, percent)
    pktgen.set(way.tx, "rate", percent)
    local before = counters_at_rest(way)
    pktgen.start(way.tx)
    pktgen.delay(math.tointeger(TRIAL_SECONDS * 1000 // 1))
    pktgen.stop(way.tx)
    local after = counters_at_rest(way)

    local sent = after.sent - before.sent
    assert(sent > 0, "port " .. way.tx .. " has sent nothing, or counts nothing")
    local received = after.received - before.received
    return {
        rate_percent = percent,
        sent = sent,
        -- Negative when strangers' packets were counted with ours.
        lost = sent - received,
        loss_percent = math.max(0, 100 * (sent - received) / sent),
        offered_mpps = sent / TRIAL_SECONDS / 1e6,
        received_mpps = received / TRIAL_SECONDS / 1e6,
        missed_by_tester = after.missed - before.missed,
        frame = (after.sent_bytes - before.sent_bytes) / sent + FCS,
    }
end

-- The loss at one percent of the rate: whatever is lost now is lost for another reason than load.
function first_light(way, size)
    local seen = trial(way, 1)
    -- Some drivers count the FCS.
    assert(math.abs(seen.frame - size) <= FCS,
        string.format("Pktgen sends frames of %.0f bytes, not of %d: README.md, versions", seen.frame, size))
    assert(seen.loss_percent < 100, "nothing arrives: README.md, when nothing arrives")
    assert(DIRECTION == "in" or seen.loss_percent == 0,
        "replies are lost at rest: their connections are not open: README.md, replies")
    return seen.loss_percent
end

-- Trials are kept by rate: searches of other tolerances begin with the same ones.
function search(way, tolerance, trials)
    local function passes(percent)
        trials[percent] = trials[percent] or trial(way, percent)
        return trials[percent].loss_percent <= tolerance
    end
    local low, high = 0, 100
    if passes(high) then
        low = high
    end
    while high - low > RESOLUTION do
        local middle = (low + high) / 2
        if passes(middle) then
            low = middle
        else
            high = middle
        end
    end

    local best, worse = trials[low], trials[high]
    local limit = "router"
    if low == 100 then
        limit = best.offered_mpps < 0.98 * way.line_mpps and "tester" or "link"
    elseif worse.missed_by_tester > 0 then
        limit = "tester"
    end
    return {
        tolerance_percent = tolerance,
        limited_by = limit,
        rate_percent = low,
        sent = best and best.sent or 0,
        lost = best and best.lost or 0,
        loss_percent = best and best.loss_percent or 0,
        offered_mpps = best and best.offered_mpps or 0,
        received_mpps = best and best.received_mpps or 0,
    }
end

function latencies(way, throughput_percent)
    local list = {}
    for _, load in ipairs(LOADS) do
        pktgen.clear(way.tx)
        pktgen.clear(way.rx)
        probes(way, "enable")
        local seen = trial(way, throughput_percent * load / 100)
        local latency = pktgen.pktStats(way.rx)[tonumber(way.rx)].latency
        probes(way, "disable")
        list[#list + 1] = {
            load_percent = load,
            rate_percent = seen.rate_percent,
            loss_percent = seen.loss_percent,
            probes = latency.num_pkts,
            skipped = latency.num_skipped,
            min_us = latency.min_us,
            avg_us = latency.avg_us,
            max_us = latency.max_us,
        }
    end
    return list
end

--------------------------------------------------------------------------------------------------------------
-- What is written
--------------------------------------------------------------------------------------------------------------

-- Enough JSON for our own tables: one with numbered elements, or with none at all, is an array.
local function json(value, indent)
    if type(value) == "string" then
        return '"' .. value:gsub('[%c"\\]', function(c) return string.format("\\u%04x", c:byte()) end) .. '"'
    elseif type(value) ~= "table" then
        return math.type(value) == "float" and string.format("%.9g", value) or tostring(value)
    end
    local deeper = indent .. "  "
    local items = {}
    for _, item in ipairs(value) do
        items[#items + 1] = deeper .. json(item, deeper)
    end
    local open, close = "[", "]"
    if next(value) ~= nil and #value == 0 then
        open, close = "{", "}"
        for key, item in pairs(value) do
            items[#items + 1] = deeper .. json(key, deeper) .. ": " .. json(item, deeper)
        end
        table.sort(items)
    end
    return #items == 0 and "[]" or open .. "\n" .. table.concat(items, ",\n") .. "\n" .. indent .. close
end

function save(result)
    local file = assert(io.open(RESULT, "w"))
    file:write(json(result, ""), "\n")
    assert(file:close())
end

function report(entry)
    if entry.loss_percent_at_rest > 0 then
        print(string.format("%5d B  loses %g %% at rest: look for the reason before the rest is believed",
            entry.size, entry.loss_percent_at_rest))
    end
    for _, found in ipairs(entry.throughput) do
        print(string.format("%5d B  loss <= %-6g  %6.2f %%  %8.3f Mpps of %8.3f  limited by the %s",
            entry.size, found.tolerance_percent, found.rate_percent, found.received_mpps, entry.line_mpps,
            found.limited_by))
    end
    for _, seen in ipairs(entry.latency) do
        print(string.format("         at %3g %% of it   min %8.1f  avg %8.1f  max %8.1f us  (%d probes)",
            seen.load_percent, seen.min_us, seen.avg_us, seen.max_us, seen.probes))
    end
end

main()
