package run

import (
	"os/exec"
	"syscall"
	"testing"
)

func TestAGroupOfZombiesIsGone(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if onlyZombies(cmd.Process.Pid) {
		t.Error("a living member was not seen")
	}
	stdin.Close()
	if err := awaitExit(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if !onlyZombies(cmd.Process.Pid) {
		t.Error("a zombie was taken for a living member")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("awaitExit took the status: %v", err)
	}
	if onlyZombies(cmd.Process.Pid) {
		t.Error("a group that cannot be seen was declared dead")
	}
}

func TestTheStatOfAProcessIsReadBehindItsName(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		stat string
		want member
		ok   bool
	}{
		{"412 (node) S 1 400 400 0 -1 4194560", member{pid: 412, parent: 1, group: 400, state: 'S'}, true},
		{"413 (a) Z 9 9 (b) c) Z 1 401 400 0 -1", member{pid: 413, parent: 1, group: 401, state: 'Z'}, true},
		{"414 (cut", member{}, false},
		{"415 (odd) S one 2", member{}, false},
		{"", member{}, false},
	} {
		if got, ok := parseStat([]byte(test.stat)); got != test.want || ok != test.ok {
			t.Errorf("%q: got %+v, %v; want %+v", test.stat, got, ok, test.want)
		}
	}
}
