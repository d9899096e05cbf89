package doctor

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/posternhq/postern/protocol"
)

func TestAnAppOnOneInterfaceAlone(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	list := addresses()
	if len(list) == 0 {
		inNamespace(t)
		return
	}
	port := freePort(t)
	a := start(t).do(fmt.Sprintf("tcp %v:%d", list[0], port))
	got := a.doctor(port).Examine(t.Context())
	f := expect(t, got, protocol.StateStarting, "PORT05")
	contains(t, f.Cause, list[0].String())
	if got.Reachable != netip.AddrPortFrom(list[0], uint16(port)) {
		t.Errorf("rescue by %v", got.Reachable)
	}
}

// inNamespace runs this very test where there is an interface beside lo.
func inNamespace(t *testing.T) {
	ip, err := exec.LookPath("ip")
	if err != nil || os.Getuid() != 0 {
		t.Skip("no interface beside lo, and none can be made: that takes root and iproute2")
	}
	script := `"$0" link set lo up && "$0" link add eth9 type dummy && "$0" addr add 192.0.2.7/24 dev eth9 && "$0" link set eth9 up && exec "$1" -test.run "$2"`
	cmd := exec.Command("sh", "-c", script, ip, os.Args[0], "^"+t.Name()+"$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
