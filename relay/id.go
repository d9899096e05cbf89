package relay

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// idAlphabet is Crockford's base32 in lower case: no i, l, o, u, so that an id
// read aloud or copied by hand is not mistaken.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// newID makes prefix + 26 characters: 48 bits of milliseconds and 80 random
// bits. Ids made later sort later, which keeps database inserts local.
func newID(prefix string, now time.Time) string {
	var raw [16]byte
	rand.Read(raw[:]) // never fails (crypto/rand documents it)
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(raw[:6], ms[2:])

	out := make([]byte, len(prefix), len(prefix)+26)
	copy(out, prefix)
	hi, lo := binary.BigEndian.Uint64(raw[:8]), binary.BigEndian.Uint64(raw[8:])
	for i := 25; i >= 0; i-- { // 26 x 5 bits hold 128; the first digit has 3
		shift := uint(i * 5)
		var v uint64
		if shift < 64 {
			v = lo >> shift
			if shift > 59 {
				v |= hi << (64 - shift)
			}
		} else {
			v = hi >> (shift - 64)
		}
		out = append(out, idAlphabet[v&31])
	}
	return string(out)
}

// NewRequestID makes the id that every answer and log line of one request
// carries.
func NewRequestID(now time.Time) string { return newID("req_", now) }

// NewSessionID names one agent's session in logs on both sides.
func NewSessionID(now time.Time) string { return newID("ses_", now) }

// NewLastWordsID names how one instance ended.
func NewLastWordsID(now time.Time) LastWordsID { return LastWordsID(newID("lw_", now)) }

// NewOrderID names an order of a kind.
func NewOrderID(kind OrderKind, now time.Time) string {
	if kind == OrderDeny {
		return newID("den_", now)
	}
	return newID("exc_", now)
}

// NewAuditID names one entry of the audit log.
func NewAuditID(now time.Time) string { return newID("aud_", now) }

// NewFlowID names one call to the outside.
func NewFlowID(now time.Time) string { return newID("flo_", now) }
