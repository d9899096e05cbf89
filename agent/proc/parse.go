package proc

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const stateListen = "LISTEN"

// states are the numbers of include/net/tcp_states.h.
var states = [...]string{
	1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT",
	7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: stateListen, 11: "CLOSING", 12: "NEW_SYN_RECV",
}

// tick is USER_HZ, which is 100 on every architecture Go runs on.
const tick = 10 * time.Millisecond

// maxTicks is more than any process uses, and keeps a sum of two within a Duration.
const maxTicks = 1 << 38

// parseStat reads proc_pid_stat(5). The name is in parentheses and may contain
// anything, so the last one counts.
func parseStat(stat []byte, pageSize int64) (Process, bool) {
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 1 || shut < open {
		return Process{}, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(stat[:open])))
	if err != nil || pid <= 0 {
		return Process{}, false
	}
	fields := bytes.Fields(stat[shut+1:]) // the first is field 3
	if len(fields) < 22 || len(fields[0]) != 1 {
		return Process{}, false
	}
	number := func(field int) int64 {
		n, _ := strconv.ParseInt(string(fields[field-3]), 10, 64)
		return max(n, 0)
	}
	started, _ := strconv.ParseUint(string(fields[22-3]), 10, 64)
	return Process{
		PID:     pid,
		Name:    printable(stat[open+1 : shut]),
		State:   fields[0][0],
		PPID:    int(number(4)),
		Group:   int(number(5)),
		Session: int(number(6)),
		CPU:     time.Duration(min(number(14), maxTicks)+min(number(15), maxTicks)) * tick,
		Threads: int(number(20)),
		Started: started,
		RSS:     min(number(24), 1<<40) * pageSize,
	}, true
}

// parseArgs reads /proc/PID/cmdline: words that each end with a zero byte. A
// process that wrote its title over them has one word of many.
func parseArgs(raw []byte) []string {
	raw = bytes.TrimRight(raw, "\x00")
	if len(raw) == 0 {
		return nil
	}
	var args []string
	for word := range bytes.SplitSeq(raw, []byte{0}) {
		if len(args) == maxArgs {
			break
		}
		args = append(args, printable(word))
	}
	return args
}

// maxArgs is how many words of a command line are kept.
const maxArgs = 256

// printable replaces what would damage a log line.
func printable(raw []byte) string {
	if !utf8.Valid(raw) {
		raw = bytes.ToValidUTF8(raw, []byte("�"))
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, string(raw))
}

// parseSocket reads one line of /proc/net/tcp or tcp6:
//
//	sl local rem st tx:rx tr:when retrnsmt uid timeout inode …
//
// The heading, and whatever else is not a socket, is not ok.
func parseSocket(line []byte) (s Socket, ok bool) {
	var fields [10][]byte
	n := 0
	for field := range bytes.FieldsSeq(line) {
		if fields[n] = field; n == len(fields)-1 {
			n++
			break
		}
		n++
	}
	if n < len(fields) || !bytes.HasSuffix(fields[0], []byte(":")) {
		return Socket{}, false
	}
	local, six, ok := parseAddress(fields[1])
	remote, _, also := parseAddress(fields[2])
	state, err := strconv.ParseUint(string(fields[3]), 16, 8)
	if !ok || !also || err != nil || state == 0 || state >= uint64(len(states)) {
		return Socket{}, false
	}
	uid, err := strconv.ParseUint(string(fields[7]), 10, 32)
	if err != nil {
		return Socket{}, false
	}
	inode, err := strconv.ParseUint(string(fields[9]), 10, 64)
	if err != nil {
		return Socket{}, false
	}
	return Socket{UID: int(uid), State: states[state], Local: local, Remote: remote, IPv6: six, Inode: inode}, true
}

// parseAddress reads "0100007F:1F90": words of 32 bits as this machine stores
// them, and a port.
func parseAddress(raw []byte) (addr netip.AddrPort, six, ok bool) {
	host, port, found := bytes.Cut(raw, []byte(":"))
	if !found || len(host) != 8 && len(host) != 32 || len(port) != 4 {
		return netip.AddrPort{}, false, false
	}
	var bin [16]byte
	if _, err := hex.Decode(bin[:], host); err != nil {
		return netip.AddrPort{}, false, false
	}
	for word := bin[:len(host)/2]; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	number, err := strconv.ParseUint(string(port), 16, 16)
	if err != nil {
		return netip.AddrPort{}, false, false
	}
	ip := netip.AddrFrom4([4]byte(bin[:4]))
	if six = len(host) == 32; six {
		ip = netip.AddrFrom16(bin).Unmap()
	}
	return netip.AddrPortFrom(ip, uint16(number)), six, true
}

// parseLink reads what a descriptor of a socket points to: "socket:[12345]".
func parseLink(link string) (inode uint64, ok bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	number, also := strings.CutSuffix(number, "]")
	if !ok || !also {
		return 0, false
	}
	inode, err := strconv.ParseUint(number, 10, 64)
	return inode, err == nil
}

// parseSignals reads the masks of caught and ignored signals of proc_pid_status(5).
func parseSignals(status []byte) (caught, ignored uint64, ok bool) {
	found := 0
	for line := range bytes.Lines(status) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		into := &caught
		switch string(name) {
		case "SigCgt":
		case "SigIgn":
			into = &ignored
		default:
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil {
			return 0, 0, false
		}
		*into = mask
		found++
	}
	return caught, ignored, found == 2
}

// parseLimit reads a memory limit in bytes; "max", zero and the number that cgroup
// v1 shows for none are 0.
func parseLimit(raw []byte) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil || n <= 0 || n >= noLimit {
		return 0
	}
	return n
}

// noLimit is more memory than a machine has; v1 says 2⁶³ rounded down to a page.
const noLimit = 1 << 60

// parseCgroup reads /proc/PID/cgroup and gives the paths of the unified hierarchy
// (v2) and of the memory controller (v1).
func parseCgroup(raw []byte) (unified, memory string) {
	for line := range bytes.Lines(raw) {
		parts := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		if parts[0] == "0" && parts[1] == "" {
			unified = parts[2]
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			if controller == "memory" {
				memory = parts[2]
			}
		}
	}
	return unified, memory
}
