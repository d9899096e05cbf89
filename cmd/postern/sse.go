package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// sseMessage is one server-sent event.
type sseMessage struct {
	event   string // "" is "message"
	data    []byte // its data lines, with \n between them
	tooLong bool   // there were more than maxMessage bytes; data is empty
}

// sseReader reads a stream of server-sent events (WHATWG HTML, section 9.2). No
// line and no message takes more memory than max: one that is longer is read to
// its end and reported without its data.
type sseReader struct {
	r   *bufio.Reader
	max int

	lastID string        // resumes the stream behind the last message
	retry  time.Duration // what the server asks to wait before coming back; 0: it did not say

	begun  bool // something was read: no byte order mark any more
	skipLF bool // the last line ended with \r, whose \n may follow
}

// maxMessage is the most that one message of the relay may take: a body of 25 MB
// whose every byte JSON writes as two, and what is around it.
const maxMessage = 64 << 20

func newSSEReader(r io.Reader, max int) *sseReader {
	return &sseReader{r: bufio.NewReaderSize(r, 16<<10), max: max}
}

// next waits for the next message. What the stream ends in the middle of is no
// message.
func (s *sseReader) next() (sseMessage, error) {
	var m sseMessage
	var some bool
	id := s.lastID
	for {
		line, tooLong, err := s.line()
		if err != nil {
			return sseMessage{}, err
		}
		if tooLong {
			m.tooLong, m.data = true, nil
			continue
		}
		if len(line) == 0 {
			s.lastID = id
			if some || m.tooLong {
				return m, nil
			}
			m.event = ""
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			switch {
			case m.tooLong:
			case len(m.data)+len(value)+1 > s.max:
				m.tooLong, m.data = true, nil
			case some:
				m.data = append(append(m.data, '\n'), value...)
			default:
				some, m.data = true, bytes.Clone(value)
			}
		case "event":
			m.event = string(value)
		case "id":
			if fitsHeader(value) {
				id = string(value)
			}
		case "retry":
			s.setRetry(string(value))
		}
	}
}

// fitsHeader reports whether id can go back as Last-Event-ID. One that cannot
// would keep the stream from ever being opened again.
func fitsHeader(id []byte) bool {
	return len(id) <= 1<<10 && !bytes.ContainsFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func (s *sseReader) setRetry(ms string) {
	if strings.Trim(ms, "0123456789") != "" {
		return
	}
	if n, err := strconv.Atoi(ms); err == nil && n <= int(time.Hour/time.Millisecond) {
		s.retry = time.Duration(n) * time.Millisecond
	}
}

// line reads up to \n, \r\n or \r. The result is good until the next call.
func (s *sseReader) line() (line []byte, tooLong bool, err error) {
	var long []byte // of what did not fit into the reader's buffer
	for {
		if _, err := s.r.Peek(1); err != nil {
			return nil, false, err
		}
		have, _ := s.r.Peek(s.r.Buffered())
		if s.skipLF {
			s.skipLF = false
			if have[0] == '\n' {
				s.r.Discard(1)
				continue
			}
		}
		end := bytes.IndexAny(have, "\r\n")
		part, used := have, len(have)
		if end >= 0 {
			part, used = have[:end], end+1
			s.skipLF = have[end] == '\r'
		}
		if len(long)+len(part) > s.max {
			tooLong, long = true, nil
		}
		if !tooLong {
			long = append(long, part...)
		}
		s.r.Discard(used)
		if end >= 0 {
			if !s.begun {
				s.begun, long = true, bytes.TrimPrefix(long, []byte("\ufeff"))
			}
			return long, tooLong, nil
		}
	}
}

// ended reports whether err is the quiet end of a stream.
func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
