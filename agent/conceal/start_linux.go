package conceal

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// receiveTime is how long the token may take to come out of its pipe. From ourselves it
// is in there already; only a launcher may still be busy with it.
const receiveTime = 2 * time.Second

// undumpable makes this process's files in /proc root's, forbids to attach a debugger
// to it, and to write its memory into a core. A program that it starts is as it always
// is, for the flag goes with the memory that execve replaces.
func undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide the agent's memory from the app: %w", err)
	}
	return nil
}

// again starts this program again with the token in a pipe. It returns only when that
// failed, and leaves nothing behind then.
func again(token string) error {
	if len(token) > maxToken {
		return fmt.Errorf("it has more than %d bytes", maxToken)
	}
	path, err := ourselves()
	if err != nil {
		return err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(ends[0])
	// A fresh pipe takes this much in one piece, and nobody has to wait.
	_, err = unix.Write(ends[1], []byte(token))
	unix.Close(ends[1])
	if err != nil {
		return os.NewSyscallError("write", err)
	}
	if _, err := unix.FcntlInt(uintptr(ends[0]), unix.F_SETFD, 0); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	env := append(os.Environ(), pipeVariable+"="+strconv.Itoa(ends[0]))
	return os.NewSyscallError("execve", syscall.Exec(path, os.Args, env))
}

// ourselves is the file of this program. By its own path where that still leads to it,
// because the process is named after what was executed: by the link in /proc it would be
// called "exe".
func ourselves() (string, error) {
	const link = "/proc/self/exe"
	running, err := os.Stat(link)
	if err != nil {
		return "", err
	}
	if path, err := os.Readlink(link); err == nil {
		if file, err := os.Stat(path); err == nil && os.SameFile(file, running) {
			return path, nil
		}
	}
	return link, nil
}

// receive reads the token from the pipe of this number and closes it.
func receive(number string) (string, error) {
	parsed, err := strconv.ParseInt(number, 10, 32) // as wide as the kernel takes it
	fd := int(parsed)
	if err != nil || fd <= 2 {
		return "", errors.New("not the number of a pipe")
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return "", errors.New("not a pipe") // somebody else's file, left alone
	}
	unix.CloseOnExec(fd)
	defer unix.Close(fd)
	token, err := readAll(fd, time.Now().Add(receiveTime))
	if err != nil {
		return "", err
	}
	if strings.ContainsRune(token, 0) {
		return "", errors.New("not a token")
	}
	return strings.TrimRight(token, "\r\n"), nil // a launcher's echo
}

// readAll reads a pipe to its end. It waits with poll and not with a deadline of a
// file, because that would change the pipe's mode for everybody who has it open.
func readAll(fd int, deadline time.Time) (string, error) {
	buffer := make([]byte, maxToken+1)
	for n := 0; ; {
		left := time.Until(deadline)
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(left, 0).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", os.NewSyscallError("poll", err)
		case ready == 0:
			return "", errors.New("the pipe does not end")
		}
		got, err := unix.Read(fd, buffer[n:])
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return "", os.NewSyscallError("read", err)
		case got == 0 && n == 0:
			return "", errors.New("the pipe is empty")
		case got == 0:
			return string(buffer[:n]), nil
		}
		if n += got; n > maxToken {
			return "", fmt.Errorf("the pipe holds more than %d bytes", maxToken)
		}
	}
}
