package main

import "testing"

func TestTheDeepestMountTellsTheFileSystem(t *testing.T) {
	t.Parallel()
	const mounts = `/dev/vda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/real\040disk xfs rw 0 0
overlay /var/lib overlay rw 0 0
/dev/vdc /var/lib btrfs rw 0 0
`
	for dir, want := range map[string]string{
		"/": "ext4 (/dev/vda)", "/home/x": "ext4 (/dev/vda)", "/tmpfiles": "ext4 (/dev/vda)",
		"/tmp": "tmpfs (tmpfs)", "/tmp/a": "tmpfs (tmpfs)",
		"/tmp/real disk/a": "xfs (/dev/vdb)", "/var/lib": "btrfs (/dev/vdc)",
	} {
		got := parseMounts(mounts, dir)
		if got != want {
			t.Errorf("%s is on %s, expected %s", dir, got, want)
		}
		if (machine{Disk: got}).memoryOnly() != (want == "tmpfs (tmpfs)") {
			t.Errorf("%s: a disk or not", got)
		}
	}
	if got := parseMounts("", "/"); got != "unknown" {
		t.Errorf("without mounts: %s", got)
	}
}

func TestFsyncsAreAllTimed(t *testing.T) {
	t.Parallel()
	times, err := fsyncTimes(t.TempDir(), 20)
	if err != nil || times.total != 20 || times.quantile(0.5) <= 0 {
		t.Errorf("%v, %d times", err, times.total)
	}
	if _, err := fsyncTimes(t.TempDir()+"/gone", 1); err == nil {
		t.Error("timed in a folder that is not there")
	}
}
