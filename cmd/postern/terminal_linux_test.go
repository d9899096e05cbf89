package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/posternhq/postern/protocol/api"
)

func ioctl(t *testing.T, f *os.File, request uintptr, arg unsafe.Pointer) {
	t.Helper()
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(arg)); errno != 0 {
		t.Skip("no terminals here:", errno)
	}
}

// openTerminal is a terminal of columns, and what is shown on it.
func openTerminal(t *testing.T, columns uint16) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { screen.Close() })
	var locked, number int32
	ioctl(t, screen, syscall.TIOCSPTLCK, unsafe.Pointer(&locked))
	ioctl(t, screen, syscall.TIOCGPTN, unsafe.Pointer(&number))
	if terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { terminal.Close() })
	size := [4]uint16{24, columns}
	ioctl(t, terminal, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
	return screen, terminal
}

func TestWhatIsATerminal(t *testing.T) {
	t.Parallel()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if isTerminal(null) {
		t.Error("the null device is none")
	}
	for columns, want := range map[uint16]int{132: 132, 0: 80} {
		if _, terminal := openTerminal(t, columns); terminalWidth(terminal) != want {
			t.Errorf("%d columns, want %d", terminalWidth(terminal), want)
		}
	}
}

// The program itself, at a real terminal: as wide as it, and in colour unless
// NO_COLOR is set.
func TestListAtATerminal(t *testing.T) {
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{Events: someEvents()})
	for _, noColor := range []string{"", "1"} {
		screen, terminal := openTerminal(t, 90)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "events", "list")
		cmd.Env = append(os.Environ(), "POSTERN_TEST_AS_PROGRAM=1", "NO_COLOR="+noColor, "TERM=xterm")
		cmd.Stdout = terminal
		var errs bytes.Buffer
		cmd.Stderr = &errs
		if err := cmd.Run(); err != nil {
			t.Fatal(err, errs.String())
		}
		var text string
		for part := make([]byte, 4<<10); !strings.Contains(text, "leased"); { // the last line's
			n, err := screen.Read(part)
			if err != nil {
				t.Fatal(err)
			}
			text += string(part[:n])
		}
		if got, want := strings.Contains(text, "\x1b[31mdead\x1b[0m"), noColor == ""; got != want {
			t.Errorf("NO_COLOR=%s: colours %v: %q", noColor, got, text)
		}
		if noColor != "" {
			for _, l := range strings.Split(text, "\r\n") {
				if n := len([]rune(l)); n > 90 {
					t.Errorf("%d columns where there are 90: %s", n, l)
				}
			}
		}
	}
}
