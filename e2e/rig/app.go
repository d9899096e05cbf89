package rig

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
)

// Serve is an app in this process; it returns its address. It has no limits of
// its own, and says nothing about clients that leave.
func Serve(t testing.TB, h http.Handler) string {
	t.Helper()
	l := listen(t)
	ServeOn(t, l, h)
	return l.Addr().String()
}

// ServeOn is Serve on a listener of the caller's, which may count connections or
// be an address that was refused before.
func ServeOn(t testing.TB, l net.Listener, h http.Handler) *http.Server {
	t.Helper()
	s := &http.Server{Handler: h, ErrorLog: discardLog}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return s
}

// ServeRaw is an app below HTTP: serve has the whole connection, which is closed
// when it returns.
func ServeRaw(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l := listen(t)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				defer conn.Close()
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		l.Close()
		running.Wait()
	})
	return l.Addr().String()
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// shimVariable makes this binary an app; its value is the target's address.
const shimVariable = "E2E_APP_TARGET"

// shim is the app of AppCommand: bytes from PORT to target and back.
func shim(target string) int {
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, func() { l.Close() })
	// The tests hold the other end of our input; when they are gone, nobody else
	// would end an app whose agent was killed.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("app listens on", l.Addr())
	var running sync.WaitGroup
	for {
		conn, err := l.Accept()
		if err != nil {
			break
		}
		running.Go(func() { splice(conn, target) })
	}
	running.Wait()
	fmt.Println("app has finished")
	return 0
}

// splice joins conn to target, keeping half-closes and aborts what they are.
func splice(conn net.Conn, target string) {
	defer conn.Close()
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	var running sync.WaitGroup
	running.Go(func() { pump(up.(*net.TCPConn), conn.(*net.TCPConn)) })
	pump(conn.(*net.TCPConn), up.(*net.TCPConn))
	running.Wait()
}

func pump(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.SetLinger(0)
		src.SetLinger(0)
		dst.Close()
		src.Close()
		return
	}
	dst.CloseWrite()
}
