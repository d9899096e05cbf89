package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The tests run this binary again as the processes to look at. helperVariable says
// which part it plays.
const helperVariable = "PROC_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperVariable) {
	case "":
		os.Exit(m.Run())
	case "listen": // until stdin ends
		l, err := net.Listen("tcp", os.Getenv("ADDRESS"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(l.Addr().(*net.TCPAddr).Port)
	case "parent": // of a listener
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), helperVariable+"=listen")
		child.Stdin, child.Stdout = os.Stdin, os.Stdout
		if os.Getenv("LEAVE") != "" { // and goes away before it
			if err := child.Start(); err != nil {
				os.Exit(1)
			}
			os.Exit(0)
		}
		child.Run()
	case "spin":
		go func() {
			for spun := new(atomic.Int64); ; {
				spun.Add(1)
			}
		}()
		fmt.Println(1)
	case "look": // at a process, as an unprivileged user
		pid, _ := strconv.Atoi(os.Getenv("PID"))
		shot, err := Take(pid)
		fmt.Println(os.Getuid(), len(shot.Tree), len(shot.Listeners), shot.Hidden, err)
		for _, l := range shot.Listeners {
			fmt.Println(l.Local.Port(), l.PID)
		}
		os.Exit(0)
	}
	bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0)
}

// helper starts a part in a process group of its own and returns the port that it
// prints.
func helper(t *testing.T, part string, env ...string) (cmd *exec.Cmd, port int) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, helperVariable+"="+part)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	t.Cleanup(func() {
		stdin.Close()
		bufio.NewReader(out).ReadString(0) // until everybody who can write is gone
		out.Close()
		cmd.Wait()
	})
	out.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fscanln(out, &port); err != nil {
		t.Fatalf("the part %s said no port: %v", part, err)
	}
	return cmd, port
}

func listenerOn(list []Socket, port int) (Socket, bool) {
	i := slices.IndexFunc(list, func(s Socket) bool { return int(s.Local.Port()) == port })
	if i < 0 {
		return Socket{}, false
	}
	return list[i], true
}

func TestTakeFindsTheListenerOfAGrandchild(t *testing.T) {
	t.Parallel()
	cmd, port := helper(t, "parent", "ADDRESS=127.0.0.1:0")
	shot, err := Take(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if len(shot.Tree) != 2 || shot.Tree[0].PID != cmd.Process.Pid || shot.Tree[1].PPID != cmd.Process.Pid {
		t.Fatalf("the tree is %+v", shot.Tree)
	}
	child := shot.Tree[1]
	if child.RSS == 0 || child.Threads == 0 || child.Args[0] != os.Args[0] || child.Group != cmd.Process.Pid || child.Started == 0 {
		t.Errorf("the child is %+v", child)
	}
	l, ok := listenerOn(shot.Listeners, port)
	if !ok || l.PID != child.PID || l.Process != child.Name || !l.Listens() || l.UID != os.Getuid() {
		t.Fatalf("the listener is %+v", l)
	}
	if !Holds(l) {
		t.Error("its own socket is not held")
	}
	other := l
	other.Inode++
	if Holds(other) {
		t.Error("another socket is held")
	}
	holder, err := Holder(l.Inode)
	if err != nil || holder.PID != child.PID {
		t.Errorf("the holder is %+v, %v", holder, err)
	}
	sockets, err := Sockets(shot.Tree)
	if got, ok := listenerOn(sockets, port); err != nil || !ok || got.PID != child.PID {
		t.Errorf("the sockets are %+v, %v", sockets, err)
	}
	all, err := Listeners()
	if got, ok := listenerOn(all, port); err != nil || !ok || got.PID != child.PID {
		t.Errorf("among all listeners it is %+v, %v", got, err)
	}
}

func TestWhoIsLeftBehindStillBelongsToTheGroup(t *testing.T) {
	t.Parallel()
	cmd, port := helper(t, "parent", "ADDRESS=127.0.0.1:0", "LEAVE=1")
	cmd.Process.Wait()
	shot, err := Take(cmd.Process.Pid)
	if !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a root that is gone gives %v", err)
	}
	l, ok := listenerOn(shot.Listeners, port)
	if !ok || l.PID == 0 || len(shot.Tree) != 1 || l.PID != shot.Tree[0].PID {
		t.Errorf("the listener is %+v, the tree %+v", l, shot.Tree)
	}
}

func TestSocketsShowConnections(t *testing.T) {
	t.Parallel()
	_, port := helper(t, "listen", "ADDRESS=127.0.0.1:0")
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	self, err := process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := Sockets([]Process{self})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(sockets, func(s Socket) bool {
		return s.State == "ESTABLISHED" && s.PID == os.Getpid() && s.Local.String() == conn.LocalAddr().String() && s.Remote.String() == conn.RemoteAddr().String()
	}) {
		t.Errorf("our connection %v is not among %+v", conn.LocalAddr(), sockets)
	}
}

// Another user's descriptors are closed to us: the listener is seen, its holder not.
func TestWithoutPrivilegesAHolderIsNotKnown(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	cmd, port := helper(t, "listen", "ADDRESS=127.0.0.1:0")
	exe := publicCopy(t)
	look := exec.Command(exe)
	look.Env = append(os.Environ(), helperVariable+"=look", "PID="+strconv.Itoa(cmd.Process.Pid))
	look.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := look.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	scan := bufio.NewScanner(bytes.NewReader(out))
	scan.Scan()
	var uid, tree, listeners int
	var hidden bool
	if _, err := fmt.Sscan(scan.Text(), &uid, &tree, &listeners, &hidden); err != nil {
		t.Fatal(err)
	}
	if uid != 65534 || tree != 1 || !hidden {
		t.Errorf("user %d saw a tree of %d, hidden %v", uid, tree, hidden)
	}
	found := false
	for scan.Scan() {
		var p, pid int
		fmt.Sscan(scan.Text(), &p, &pid)
		if p == port {
			found = true
			if pid != 0 {
				t.Errorf("the holder of another user's socket is said to be %d", pid)
			}
		}
	}
	if !found {
		t.Errorf("the listener on %d is not seen: %s", port, out)
	}
}

// publicCopy is this binary where others may execute it.
func publicCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "proc-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(name, raw, 0o755)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAProcessThatNeverWasIsNotThere(t *testing.T) {
	t.Parallel()
	tree, err := Tree(1 << 30)
	if !errors.Is(err, os.ErrNotExist) || len(tree) != 0 {
		t.Errorf("got %+v, %v", tree, err)
	}
	if _, err := Holder(1 << 62); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the holder of no socket: %v", err)
	}
}

func TestAThreadThatWorksIsSeenBehindOneThatSleeps(t *testing.T) {
	t.Parallel()
	waits, _ := helper(t, "listen", "ADDRESS=127.0.0.1:0")
	works, _ := helper(t, "spin")
	for deadline := time.Now().Add(20 * time.Second); Runnable(waits.Process.Pid); {
		if time.Now().After(deadline) { // its own start takes it some milliseconds
			t.Fatal("one that waits is always seen to work")
		}
	}
	n := 0
	for range 20 {
		if Runnable(works.Process.Pid) {
			n++
		}
	}
	if n < 15 {
		t.Errorf("one that works was seen to %d of 20 times", n)
	}
}

func TestAgeIsCountedFromTheStart(t *testing.T) {
	t.Parallel()
	self, err := process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if age := Age(self); age > 5*time.Minute {
		t.Errorf("this test is %v old", age)
	}
	self.Started -= min(self.Started-1, 10*60*100)
	if age := Age(self); age < time.Second {
		t.Errorf("an older one is %v old", age)
	}
	if age := Age(Process{}); age != 0 {
		t.Errorf("nobody is %v old", age)
	}
}

func TestSignalsOfThisVeryTest(t *testing.T) {
	t.Parallel()
	caught, _, err := Signals(os.Getpid())
	if err != nil || caught&(1<<(syscall.SIGTERM-1)) == 0 { // Go's runtime catches it
		t.Errorf("got %x, %v", caught, err)
	}
}

func TestTheTableIsReadNoFurtherThanNeeded(t *testing.T) {
	t.Parallel()
	line := func(i int, state string) string {
		return fmt.Sprintf("%4d: 0100007F:%04X 00000000:0000 %s 0:0 00:0 0 0 0 %d 1 0\n", i, i, state, i)
	}
	name := filepath.Join(t.TempDir(), "tcp")
	var text []byte
	text = append(text, "  sl  local_address\n"...)
	for i := 1; i <= 3; i++ {
		text = append(text, line(i, "0A")...)
	}
	for i := 4; i < 4+beyond; i++ {
		text = append(text, line(i, "01")...)
	}
	text = append(text, line(5000, "0A")...) // one that another kernel lists late
	for i := 6000; i < 6000+4*beyond; i++ {
		text = append(text, line(i, "01")...)
	}
	text = append(text, line(9000, "0A")...) // one too late
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	list, err := table(name, true)
	if err != nil || len(list) != 4 || list[3].Inode != 5000 {
		t.Errorf("got %d listeners, %v", len(list), err)
	}
	list, err = table(name, false)
	if err != nil || len(list) != 5+5*beyond {
		t.Errorf("got %d sockets, %v", len(list), err)
	}
}

// The two ways to ask must give one answer, in whatever order.
func TestBothWaysShowTheSameListeners(t *testing.T) {
	t.Parallel()
	var ports []int
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	four, err := diag(familyFour)
	if err != nil {
		t.Skipf("no sock_diag here: %v", err)
	}
	six, err := diag(familySix)
	if err != nil {
		t.Fatal(err)
	}
	read, err := tables(os.Getpid(), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		asked, ok := listenerOn(append(four, six...), port)
		if !ok {
			t.Fatalf("sock_diag does not show port %d", port)
		}
		if found, _ := listenerOn(read, port); found != asked {
			t.Errorf("sock_diag shows %+v\n/proc shows      %+v", asked, found)
		}
	}
}

func TestMemoryLimitIsTheLowestOfAllLevels(t *testing.T) {
	t.Parallel()
	put := func(root, name, text string) {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name, cgroup string
		files        map[string]string
		want         int64
	}{
		{"nothing limits", "0::/\n", nil, 0},
		{"v2, in a container", "0::/\n", map[string]string{"memory.max": "268435456\n"}, 256 << 20},
		{"v2, on a host, a parent is tighter", "0::/a/b\n", map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, 1 << 20},
		{"v1, the path is the host's", "4:memory:/docker/abc\n", map[string]string{"memory/memory.limit_in_bytes": "536870912\n"}, 512 << 20},
		{"v1 without a limit", "4:memory:/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
	}
	for _, test := range tests {
		root := t.TempDir()
		for name, text := range test.files {
			put(root, name, text)
		}
		if got := memoryLimit(root, []byte(test.cgroup)); got != test.want {
			t.Errorf("%s: got %d, want %d", test.name, got, test.want)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	for b.Loop() {
		if _, err := Take(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPorts(b *testing.B) {
	for b.Loop() {
		if _, err := Ports(os.Getpid()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHolds(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	self, _ := process(os.Getpid())
	sockets, err := Sockets([]Process{self})
	if err != nil || len(sockets) == 0 {
		b.Fatal(err)
	}
	for b.Loop() {
		if !Holds(sockets[0]) {
			b.Fatal("not held")
		}
	}
}
