package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"
)

// connectProxy is the plainest CONNECT proxy of one hop that the standard library
// makes. It decides nothing and writes no log; a comparison must not win by burdening
// its opponent.
func connectProxy() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
			return
		}
		up, err := net.DialTimeout("tcp", r.Host, 10*time.Second)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer up.Close()
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			return
		}
		if early, _ := buffered.Reader.Peek(buffered.Reader.Buffered()); len(early) > 0 {
			if _, err := up.Write(early); err != nil {
				return
			}
		}
		var copying sync.WaitGroup
		copying.Go(func() { passOn(up, conn) })
		passOn(conn, up)
		copying.Wait()
	})
}

// passOn copies to the end and passes that on too.
func passOn(dst, src net.Conn) {
	_, _ = io.Copy(dst, src)
	if half, ok := dst.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
}

// delayLine carries connections to a place that is far away.
type delayLine struct {
	to    string
	delay time.Duration // each way
	hold  time.Duration // how long a new connection is held back besides
}

// playLine serves the line of args (to, delay, hold) until ctx ends.
func playLine(ctx context.Context, args []string) error {
	l := delayLine{to: args[0]}
	var err error
	if l.delay, err = time.ParseDuration(args[1]); err != nil {
		return err
	}
	if l.hold, err = time.ParseDuration(args[2]); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	fmt.Println(listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return nil
		}
		go l.carry(conn)
	}
}

// carry moves both directions of one connection.
func (l delayLine) carry(conn net.Conn) {
	defer conn.Close()
	up, err := net.DialTimeout("tcp", l.to, 10*time.Second)
	if err != nil {
		return
	}
	defer up.Close()
	begin := time.Now().Add(l.hold)
	var moving sync.WaitGroup
	moving.Go(func() { l.move(up, conn, begin) })
	l.move(conn, up, begin)
	moving.Wait()
}

// parcel is bytes on their way.
type parcel struct {
	due   time.Time
	bytes []byte
}

// move carries one direction and its end; nothing arrives before begin has come and
// the delay is over.
func (l delayLine) move(dst, src net.Conn, begin time.Time) {
	onTheWay := make(chan parcel, 4096)
	arrived := make(chan struct{})
	go func() {
		defer close(arrived)
		for p := range onTheWay {
			time.Sleep(time.Until(p.due)) // the length of the line
			_, _ = dst.Write(p.bytes)
		}
		if half, ok := dst.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			sent := time.Now()
			if sent.Before(begin) {
				sent = begin
			}
			onTheWay <- parcel{sent.Add(l.delay), append([]byte(nil), buf[:n]...)}
		}
		if err != nil {
			break
		}
	}
	close(onTheWay)
	<-arrived
}

// playSecure serves the app over TLS, with a certificate that nobody trusts.
func playSecure(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	server := &http.Server{Handler: appHandler(), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	fmt.Println(listener.Addr())
	err = server.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{cert}}))
	if ctx.Err() != nil {
		return nil
	}
	return err
}
