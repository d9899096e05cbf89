package dns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestServersOfTheSettings(t *testing.T) {
	t.Parallel()
	for in, expected := range map[string]string{
		"udp://192.0.2.1:5353":                  "udp 192.0.2.1:5353",
		"udp://192.0.2.1":                       "udp 192.0.2.1:53",
		"tcp://[2001:db8::1]:5353":              "tcp [2001:db8::1]:5353",
		"udp://2001:db8::1":                     "udp [2001:db8::1]:53",
		"udp://192.0.2.1:53, tcp://192.0.2.2:1": "udp 192.0.2.1:53,tcp 192.0.2.2:1",
	} {
		list, err := parseServers(in)
		var got []string
		for _, s := range list {
			got = append(got, s.network+" "+s.addr)
		}
		if err != nil || strings.Join(got, ",") != expected {
			t.Errorf("%s: got %v and error %v, expected %s", in, got, err, expected)
		}
	}
	for _, in := range []string{"192.0.2.1", "udp://", "udp://dns.example.com:53", "https://192.0.2.1", "udp://192.0.2.1:0",
		"udp://192.0.2.1:x", "udp://192.0.2.1:53,"} {
		if r, err := New(in); err == nil {
			t.Errorf("%s: got %+v, expected an error", in, r.servers)
		}
	}
}

func TestResolvConfIsReadAgainWhenItChanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	synctest.Test(t, func(t *testing.T) {
		s := &systemServers{path: path}
		expect := func(why, expected string) {
			t.Helper()
			list, err := s.list()
			if got := fmt.Sprint(list); err != nil || got != expected {
				t.Errorf("%s: got %s and error %v, expected %s", why, got, err, expected)
			}
		}
		written := time.Now()
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			written = written.Add(time.Second) // whatever the file system's clock can tell
			if err := os.Chtimes(path, written, written); err != nil {
				t.Fatal(err)
			}
		}
		expect("without a file", "[{udp 127.0.0.1:53} {udp [::1]:53}]")
		write("search corp.example\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver wrong\n")
		expect("as long as none was known", "[{udp 192.0.2.1:53} {udp [fe80::1%eth0]:53}]")
		write("nameserver 192.0.2.2\n")
		expect("at once after a change", "[{udp 192.0.2.1:53} {udp [fe80::1%eth0]:53}]")
		time.Sleep(checkEvery)
		expect("after a while", "[{udp 192.0.2.2:53}]")
		write("# being written\n")
		time.Sleep(checkEvery)
		expect("without a server", "[{udp 192.0.2.2:53}]")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkEvery)
		expect("after it was removed", "[{udp 192.0.2.2:53}]")
	})
}
