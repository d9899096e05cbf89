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
		stat, state string
		group       int
	}{
		{"412 (node) S 1 400 400 0 -1 4194560", "S", 400},
		{"413 (a) Z 9 9 (b) c) Z 1 401 400 0 -1", "Z", 401},
		{"414 (cut", "", 0},
		{"", "", 0},
	} {
		if state, group := stateAndGroup([]byte(test.stat)); state != test.state || group != test.group {
			t.Errorf("%q: got %q, %d; want %q, %d", test.stat, state, group, test.state, test.group)
		}
	}
}
