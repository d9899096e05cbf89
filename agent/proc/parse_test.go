package proc

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const statLine = "4242 (node) x (odd)) S 17 4242 99 0 -1 4194304 102 0 0 0 150 50 0 0 20 0 11 0 2194077 3133440 382 18446744073709551615 1 1 1 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0"

func TestStatIsReadWhateverTheName(t *testing.T) {
	got, ok := parseStat([]byte(statLine), 4096)
	want := Process{PID: 4242, PPID: 17, Group: 4242, Session: 99, Name: "node) x (odd)", State: 'S',
		RSS: 382 * 4096, Threads: 11, CPU: 2 * time.Second, Started: 2194077}
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, ok, want)
	}
	for _, bad := range []string{"", "()", "1 (a", "x (a) S 1", "1 (a) S 1 2 3", ") 1 (", "-5 (a) S" + strings.Repeat(" 1", 30), "1 (a) SS" + strings.Repeat(" 1", 30)} {
		if p, ok := parseStat([]byte(bad), 4096); ok {
			t.Errorf("%q was read as %+v", bad, p)
		}
	}
}

func TestSocketsOfBothFamiliesAreRead(t *testing.T) {
	// As a little-endian machine shows them; the words are turned on others.
	if got, _, _ := parseAddress([]byte("0100007F:1F90")); got.Addr() != netip.MustParseAddr("127.0.0.1") {
		t.Skip("the lines below are of a little-endian machine")
	}
	tests := []struct {
		line string
		want Socket
	}{
		{"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 7217 1 0000000031fb6f2c 100 0 0 10 0",
			Socket{UID: 1000, State: "LISTEN", Local: netip.MustParseAddrPort("127.0.0.1:8080"), Remote: netip.MustParseAddrPort("0.0.0.0:0"), Inode: 7217}},
		{"  12: 020000C0:B56B 08080808:01BB 01 00000000:00000000 02:000A7D5E 00000000     0        0 99 2 0000000000000000 20 4 30 10 -1",
			Socket{State: "ESTABLISHED", Local: netip.MustParseAddrPort("192.0.0.2:46443"), Remote: netip.MustParseAddrPort("8.8.8.8:443"), Inode: 99}},
		{"   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 33 0 5 1 0",
			Socket{UID: 33, State: "LISTEN", Local: netip.MustParseAddrPort("[::1]:80"), Remote: netip.MustParseAddrPort("[::]:0"), IPv6: true, Inode: 5}},
		{"   1: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:C350 06 0:0 00:0 0 0 0 0 1 0",
			Socket{State: "TIME_WAIT", Local: netip.MustParseAddrPort("127.0.0.1:80"), Remote: netip.MustParseAddrPort("127.0.0.1:50000"), IPv6: true}},
	}
	for _, test := range tests {
		if got, ok := parseSocket([]byte(test.line)); !ok || got != test.want {
			t.Errorf("%s\n got %+v, %v\nwant %+v", test.line, got, ok, test.want)
		}
	}
	for _, bad := range []string{"", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
		"0: 0100007F:1F90 00000000:0000 0A", "0: 0100007F:1F90 00000000:0000 FF 0 0 0 0 0 1", "0: 0100007F:1F90 00000000:0000 00 0 0 0 0 0 1",
		"0: 0100007:1F90 00000000:0000 0A 0 0 0 0 0 1", "0: 0100007G:1F90 00000000:0000 0A 0 0 0 0 0 1", "0: 0100007F:1F900 00000000:0000 0A 0 0 0 0 0 1"} {
		if got, ok := parseSocket([]byte(bad)); ok {
			t.Errorf("%q was read as %+v", bad, got)
		}
	}
}

func TestArgumentsAreWordsWithoutControls(t *testing.T) {
	for raw, want := range map[string][]string{
		"":                             nil,
		"\x00\x00":                     nil,
		"node\x00server.js\x00":        {"node", "server.js"},
		"sh\x00-c\x00a\x1b[31m\nb\x00": {"sh", "-c", "a?[31m?b"},
		"puma 6.4 [shop]\x00\x00\x00":  {"puma 6.4 [shop]"},
		"a\x00\x00b":                   {"a", "", "b"},
		"bad\xff\xfe":                  {"bad�"},
	} {
		if got := parseArgs([]byte(raw)); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
}

func TestSignalMasks(t *testing.T) {
	caught, ignored, ok := parseSignals([]byte("Name:\tsh\nSigBlk:\t0\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000004002\n"))
	if !ok || caught != 0x4002 || ignored != 4 {
		t.Errorf("got %x %x %v", caught, ignored, ok)
	}
	if _, _, ok := parseSignals([]byte("SigIgn:\t4\n")); ok {
		t.Error("half of the masks was taken for both")
	}
}

func TestCgroupPathsOfBothVersions(t *testing.T) {
	unified, memory := parseCgroup([]byte("9:name=systemd:/\n4:cpu,memory:/a/b:c\n0::/x\nnonsense\n"))
	if unified != "/x" || memory != "/a/b:c" {
		t.Errorf("got %q and %q", unified, memory)
	}
	for raw, want := range map[string]int64{"max\n": 0, "": 0, "536870912\n": 536870912, "9223372036854771712\n": 0, "-1": 0, "0": 0, "12a": 0} {
		if got := parseLimit([]byte(raw)); got != want {
			t.Errorf("%q: got %d, want %d", raw, got, want)
		}
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte(statLine))
	f.Add([]byte("1 () R 0"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, ok := parseStat(raw, 4096)
		if ok && (p.PID <= 0 || p.CPU < 0 || p.RSS < 0 || p.Threads < 0 || !utf8.ValidString(p.Name)) {
			t.Errorf("%q gave %+v", raw, p)
		}
	})
}

func FuzzSocket(f *testing.F) {
	f.Add([]byte("0: 0100007F:1F90 00000000:0000 0A 0:0 00:0 0 0 0 7217 1 0"))
	f.Add([]byte("0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 33 0 5 1 0"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, ok := parseSocket(raw)
		if ok && (!s.Local.IsValid() || !s.Remote.IsValid() || s.State == "" || s.UID < 0) {
			t.Errorf("%q gave %+v", raw, s)
		}
	})
}

func FuzzTexts(f *testing.F) {
	f.Add([]byte("4:memory:/a/b\n0::/x\nSigCgt:\t1\nSigIgn:\t2\nsocket:[12]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, word := range parseArgs(raw) {
			if !utf8.ValidString(word) || strings.ContainsAny(word, "\n\x1b\x00") {
				t.Errorf("%q gave the word %q", raw, word)
			}
		}
		unified, memory := parseCgroup(raw)
		for _, p := range []string{unified, memory} {
			if p != "" && p[0] != '/' {
				t.Errorf("%q gave the path %q", raw, p)
			}
		}
		if parseLimit(raw) < 0 {
			t.Errorf("%q gave a negative limit", raw)
		}
		parseSignals(raw)
		parseLink(string(raw))
	})
}

func FuzzDiag(f *testing.F) {
	f.Add(make([]byte, diagMessageLen))
	f.Add(append([]byte{familySix, diagListen, 0, 0, 0x1f, 0x90}, make([]byte, 80)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, ok := parseDiag(raw); ok && (!s.Local.IsValid() || s.State == "") {
			t.Errorf("%q gave %+v", raw, s)
		}
	})
}
