package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// partner is somebody else's server, with a name in a DNS of the demo's own: the
// example app calls it, and it says who came.
type partner struct {
	web  *http.Server
	dns  net.PacketConn
	port string // of web
	via  atomic.Pointer[string]
}

const (
	partnerHost  = "rates.partner.test"
	strangerHost = "elsewhere.test"
)

func startPartner() (*partner, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &partner{}
	if p.dns, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		l.Close()
		return nil, err
	}
	_, p.port, _ = net.SplitHostPort(l.Addr().String())
	p.web = &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		via := r.Header.Get("Via")
		p.via.Store(&via)
		fmt.Fprintln(w, `{"EUR":1,"USD":1.08}`)
	})}
	go p.web.Serve(l)
	go p.answerNames()
	return p, nil
}

func (p *partner) close() {
	p.web.Close()
	p.dns.Close()
}

// answerNames says of every name that it is on this machine.
func (p *partner) answerNames() {
	buf := make([]byte, 1500)
	for {
		n, from, err := p.dns.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		q.Response, q.Additionals = true, nil
		if q.Questions[0].Type == dnsmessage.TypeA {
			q.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 60},
				Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			}}
		}
		if answer, err := q.Pack(); err == nil {
			p.dns.WriteTo(answer, from)
		}
	}
}

// callPartner has the app make a call that the manifest allows.
func (d *demo) callPartner(ctx context.Context) (string, error) {
	status, body, err := d.get(ctx, d.url("shop.")+"/rates")
	via := d.partner.via.Load()
	switch {
	case err != nil:
		return "", err
	case status != http.StatusOK:
		return "", fmt.Errorf("the app's call was answered %d: %s", status, body)
	case via == nil || !strings.Contains(*via, "postern"):
		return "", errors.New("the call did not come through the relay")
	}
	return fmt.Sprintf("http://%s answered, and saw it come via %s", partnerHost, strings.TrimPrefix(*via, "1.1 ")), nil
}

// callStranger has the app call somebody of whom the manifest says nothing. The
// example app puts what it is asked for behind its partner's URL, as careless apps do.
func (d *demo) callStranger(ctx context.Context) (string, error) {
	status, body, err := d.get(ctx, d.url("shop.")+"/rates?of=@"+strangerHost+":"+d.partner.port+"/")
	if err != nil {
		return "", err
	}
	if status == http.StatusOK {
		return "", errors.New("it was let through")
	}
	var refusal struct {
		Error struct{ Message, Suggestion string }
	}
	if err := json.Unmarshal(body, &refusal); err != nil || refusal.Error.Message == "" {
		return "", fmt.Errorf("the refusal says nothing: %d, %.200s", status, body)
	}
	return fmt.Sprintf("%d, %s (%s)", status, refusal.Error.Message, refusal.Error.Suggestion), nil
}
