package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// openFiles is how many descriptors process pid holds.
func openFiles(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// profile reads a profile of the relay as text.
func profile(t testing.TB, admin, name string) string {
	t.Helper()
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + admin + "/debug/pprof/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("profile %s: %s, %v", name, resp.Status, err)
	}
	return string(text)
}

// goroutines is how many the relay has, and where they are.
func goroutines(t testing.TB, admin string) (int, string) {
	t.Helper()
	text := profile(t, admin, "goroutine?debug=1")
	var n int
	if _, err := fmt.Sscanf(text, "goroutine profile: total %d", &n); err != nil {
		t.Fatalf("goroutine profile: %v in %.60q", err, text)
	}
	return n, text
}

// heapOf is what the relay holds in its heap after a collection, in bytes.
func heapOf(t testing.TB, admin string) int64 {
	t.Helper()
	text := profile(t, admin, "heap?gc=1&debug=1")
	const label = "# HeapAlloc = "
	_, rest, ok := strings.Cut(text, label)
	if !ok {
		t.Fatalf("no %q in the heap profile", label)
	}
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseInt(line, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// queued is how many bytes lie in the kernel's buffers, at both ends, of all
// loopback connections to or from the ports given.
func queued(t testing.TB, ports ...string) int64 {
	t.Helper()
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	wanted := map[string]bool{}
	for _, p := range ports {
		n, _ := strconv.Atoi(p)
		wanted[fmt.Sprintf("%04X", n)] = true
	}
	var sum int64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// sl  local_address rem_address   st tx_queue:rx_queue ...
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || fields[3] == "0A" || fields[3] == "st" { // 0A listens: its queue is connections
			continue
		}
		_, local, _ := strings.Cut(fields[1], ":")
		_, remote, _ := strings.Cut(fields[2], ":")
		if !wanted[local] && !wanted[remote] {
			continue
		}
		tx, rx, _ := strings.Cut(fields[4], ":")
		for _, hex := range []string{tx, rx} {
			n, _ := strconv.ParseInt(hex, 16, 64)
			sum += n
		}
	}
	return sum
}

// portOf is the port of host:port.
func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// logTime is the time of a line of the product's text log.
func logTime(line string) (time.Time, bool) {
	_, rest, ok := strings.Cut(line, "time=")
	if !ok {
		return time.Time{}, false
	}
	stamp, _, _ := strings.Cut(rest, " ")
	at, err := time.Parse(time.RFC3339Nano, stamp)
	return at, err == nil
}

// logField is the value of key in a line of the text log, without quotes.
func logField(line, key string) string {
	_, rest, ok := strings.Cut(line, " "+key+"=")
	if !ok {
		return ""
	}
	if strings.HasPrefix(rest, `"`) {
		value, err := strconv.QuotedPrefix(rest)
		if err != nil {
			return ""
		}
		unquoted, _ := strconv.Unquote(value)
		return unquoted
	}
	value, _, _ := strings.Cut(rest, " ")
	return value
}

// mib prints bytes.
func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
