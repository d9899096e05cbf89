package protocol

import "sync"

// recvBuffer is a queue of bytes in pieces. It takes memory when bytes come and
// gives it back as they are read, so that an idle stream costs none and a full
// one no more than its window. The zero value is empty.
type recvBuffer struct {
	pieces [][]byte // unread ones, oldest first; each from lendPiece
	off    int      // how much of the first was read
	size   int      // unread bytes in all
}

func (r *recvBuffer) len() int { return r.size }

// read fills p as far as it can.
func (r *recvBuffer) read(p []byte) int {
	total := 0
	for total < len(p) && len(r.pieces) > 0 {
		first := r.pieces[0]
		n := copy(p[total:], first[r.off:])
		total += n
		if r.off += n; r.off == len(first) {
			returnPiece(first)
			r.pieces[0] = nil
			r.pieces, r.off = r.pieces[1:], 0
		}
	}
	r.size -= total
	if r.size == 0 {
		r.pieces = nil
	}
	return total
}

func (r *recvBuffer) write(p []byte) {
	r.size += len(p)
	if last := len(r.pieces) - 1; last >= 0 {
		piece := r.pieces[last]
		n := min(len(p), cap(piece)-len(piece))
		r.pieces[last] = append(piece, p[:n]...)
		p = p[n:]
	}
	for len(p) > 0 {
		piece := lendPiece(len(p))
		n := min(len(p), cap(piece))
		r.pieces = append(r.pieces, append(piece, p[:n]...))
		p = p[n:]
	}
}

// release drops everything.
func (r *recvBuffer) release() {
	for _, piece := range r.pieces {
		returnPiece(piece)
	}
	*r = recvBuffer{}
}

// pieceSizes are what the pools hold, ascending.
var pieceSizes = [...]int{1 << 10, 4 << 10, 16 << 10, 64 << 10}

var piecePools [len(pieceSizes)]sync.Pool

// lendPiece is an empty piece with room for n bytes, or of the largest size.
func lendPiece(n int) []byte {
	i := 0
	for i < len(pieceSizes)-1 && pieceSizes[i] < n {
		i++
	}
	if b, ok := piecePools[i].Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, pieceSizes[i])
}

func returnPiece(b []byte) {
	for i, size := range pieceSizes {
		if cap(b) == size {
			piecePools[i].Put(&b)
			return
		}
	}
}
