package egress

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

func TestARequestGoesToTheRelay(t *testing.T) {
	got := make(chan *http.Request, 8)
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.web = func(w http.ResponseWriter, q *http.Request) {
			body, _ := io.ReadAll(q.Body)
			got <- q
			w.Header().Set("X-Answer", "yes")
			fmt.Fprintf(w, "%s|%s", q.RequestURI, body)
		}
	})
	c := r.dial()
	for range 3 {
		c.send("POST HTTP://PLAIN.allowed.test:80/a%2Fb//c?d=e;f&%zz HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 4\r\nContent-Length: 4\r\n" +
			"Proxy-Authorization: Basic dTpw\r\nProxy-Connection: keep-alive\r\nX-Forwarded-For: 10.0.0.1\r\nConnection: Host, X-Hop\r\nX-Hop: 1\r\nX-Kept: 1\r\n\r\nbody")
		resp, body := c.answer("POST")
		if resp.StatusCode != 200 || resp.Header.Get("X-Answer") != "yes" || body != "http://plain.allowed.test/a%2Fb//c?d=e;f&%zz|body" {
			t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
		q := <-got
		if q.Host != "plain.allowed.test" || q.Header.Get("X-Kept") != "1" {
			t.Errorf("host %q, %v", q.Host, q.Header)
		}
		for _, name := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Forwarded-For", "X-Hop", "Accept-Encoding", "User-Agent"} {
			if v, ok := q.Header[name]; ok {
				t.Errorf("%s: %q was sent", name, v)
			}
		}
	}
	streams := 0
	for len(r.opens) > 0 {
		if o := <-r.opens; o.Kind == protocol.KindEgressHTTP {
			streams++
		}
	}
	if streams > 2 { // an answer may be here before its stream is free
		t.Errorf("%d streams for three requests", streams)
	}
}

func TestPipelinedRequestsAreJudgedOneByOne(t *testing.T) {
	r := newRig(t, testPolicy(7))
	c := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: a\r\n\r\nGET http://evil.test/ HTTP/1.1\r\nHost: e\r\n\r\nGET http://plain.allowed.test/2 HTTP/1.1\r\nHost: a\r\n\r\n")
	for _, status := range []int{200, 403, 200} {
		if resp, body := c.answer("GET"); resp.StatusCode != status {
			t.Errorf("%d %s, expected %d", resp.StatusCode, body, status)
		}
	}
	if f := r.flow(); f.Target != "evil.test:80" || f.Method != "GET" || f.Path != "/" || f.Form != "request" || f.From != "http" {
		t.Errorf("%+v", f)
	}
}

func TestTheRelaysRefusalsPassUnchanged(t *testing.T) {
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.web = func(w http.ResponseWriter, q *http.Request) {
			refusal := policy.NewRefusal(policy.RateLimited, "too fast")
			refusal.RetryAfter = 7
			refusal.WriteHTTP(w, "postern-node1")
		}
	})
	resp, body := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n").answer("GET")
	if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" || !strings.HasPrefix(resp.Header.Get("Proxy-Status"), "postern-node1;") ||
		decodeError(t, body).Error.Code != "rate_limited" {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
}

func TestExpectContinue(t *testing.T) {
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.web = func(w http.ResponseWriter, q *http.Request) {
			if q.Header.Get("X-No") != "" {
				w.WriteHeader(417)
				return
			}
			body, _ := io.ReadAll(q.Body)
			w.Write(body)
		}
	})
	head := "POST http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n"
	c := r.dial().send(head + "\r\n")
	c.expect("HTTP/1.1 100 Continue\r\n\r\n")
	if resp, body := c.send("body").answer("POST"); resp.StatusCode != 200 || body != "body" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if resp, _ := r.dial().send(head + "X-No: 1\r\n\r\n").answer("POST"); resp.StatusCode != 417 {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestWebSocketsPassAndOtherUpgradesDoNot(t *testing.T) {
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.web = func(w http.ResponseWriter, q *http.Request) {
			if q.Header.Get("Upgrade") == "" {
				fmt.Fprintf(w, "%q", q.Header["Http2-Settings"])
				return
			}
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			io.Copy(conn, rw)
		}
	})
	c := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%+v %v", resp, err)
	}
	c.send("frame").expect("frame")

	resp, body := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n").answer("GET")
	if resp.StatusCode != 200 || body != "[]" {
		t.Errorf("h2c: %d %s", resp.StatusCode, body)
	}
	resp, body = r.dial().send("GET http://evil.test/ HTTP/1.1\r\nHost: plain.allowed.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").answer("GET")
	if resp.StatusCode != 403 {
		t.Errorf("denied: %d %s", resp.StatusCode, body)
	}
}

func TestAnAnswerThatIsCutDoesNotLookWhole(t *testing.T) {
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.web = func(w http.ResponseWriter, q *http.Request) {
			io.WriteString(w, "half of")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	c := r.dial().send("GET http://plain.allowed.test/ HTTP/1.0\r\n\r\n")
	if how := c.ended(); how != "reset" {
		t.Errorf("the app saw %s", how)
	}
}

func TestAnswersAreStreamed(t *testing.T) {
	more := make(chan struct{})
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.web = func(w http.ResponseWriter, q *http.Request) {
			io.WriteString(w, "first\n")
			http.NewResponseController(w).Flush()
			<-more
			io.WriteString(w, "second\n")
		}
	})
	c := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(resp.Body)
	if line, err := body.ReadString('\n'); line != "first\n" {
		t.Fatalf("%q %v", line, err)
	}
	close(more)
	if line, err := body.ReadString('\n'); line != "second\n" {
		t.Fatalf("%q %v", line, err)
	}
}

// breaking serves KindEgressHTTP by hand: on each stream one good answer, then whatever
// then does with the next request.
func breaking(r *rig, seen *atomic.Int32, then func(s *protocol.Stream)) {
	r.webStream = func(s *protocol.Stream) {
		s.Accept()
		br := bufio.NewReader(s)
		q, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		seen.Add(1)
		io.Copy(io.Discard, q.Body)
		io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		if _, err := http.ReadRequest(br); err == nil {
			seen.Add(1)
			then(s)
		}
	}
}

func TestARequestThatMayHaveBeenSeenIsNotRepeated(t *testing.T) {
	var seen atomic.Int32
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		breaking(r, &seen, func(s *protocol.Stream) { s.Reset(protocol.CodeReset) })
	})
	c := r.dial()
	for _, want := range []int{200, 502} {
		resp, body := c.send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n").answer("GET")
		if resp.StatusCode != want {
			t.Fatalf("%d %s, expected %d", resp.StatusCode, body, want)
		}
		if want == 502 && decodeError(t, body).Error.Code != "connection_terminated" {
			t.Error(body)
		}
	}
	if n := seen.Load(); n != 2 {
		t.Errorf("the relay saw %d requests, 2 were sent", n)
	}
}

func TestARequestMeetsStreamsThatHaveEnded(t *testing.T) {
	ended := make(chan struct{}, 16)
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.webStream = func(s *protocol.Stream) {
			s.Accept()
			q, err := http.ReadRequest(bufio.NewReader(s))
			if err != nil {
				return
			}
			io.Copy(io.Discard, q.Body)
			io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			s.Reset(protocol.CodeStale) // it was idle for too long
			ended <- struct{}{}
		}
	})
	c := r.dial()
	for i := range 20 {
		resp, body := c.send("POST http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").answer("POST")
		if resp.StatusCode != 200 {
			t.Fatalf("request %d: %d %s", i, resp.StatusCode, body)
		}
		<-ended
	}
}

func TestARefusedStreamIsTriedElsewhere(t *testing.T) {
	var n atomic.Int32
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.webStream = func(s *protocol.Stream) {
			if n.Add(1) == 1 {
				s.Refuse(protocol.CodeDraining, "elsewhere")
				return
			}
			s.Accept()
			serveOne(s, http.HandlerFunc(r.web))
		}
	})
	resp, body := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n").answer("GET")
	if resp.StatusCode != 200 || n.Load() != 2 {
		t.Errorf("%d %s after %d streams", resp.StatusCode, body, n.Load())
	}
}
