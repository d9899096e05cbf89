package logs

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol"
)

// A ring keeps the latest lines of one stream. It is a queue of chunks: the newest
// is filled, and when all are full the oldest is emptied and filled again, with
// all of its lines dropped at once. Chunks are made when they are first needed, and
// within them the lines lie one behind the other:
//
//	seq 8 | time 8 | length and cut 2 | text | size of all of it 2
//
// The size at the end is for walking backwards. Nothing else is kept of a line, so
// that a million of them are no work for the garbage collector. The caller holds
// the Log's lock.
type ring struct {
	size   int      // of a chunk
	limit  int      // how many chunks
	first  uint64   // number of chunks[0]; the others count on
	chunks []*chunk // oldest first
	lines  uint64   // how many lines there have ever been: the next one's index
}

type chunk struct {
	base uint64 // index of its first line
	data []byte
}

// pos is a place between two lines of a ring. It stays good when lines come; when
// the line behind it has been dropped, settle finds the oldest that is left.
type pos struct {
	chunk uint64 // number
	off   int    // in the chunk
	index uint64 // of the line behind it
}

const (
	maxChunk  = 64 << 10
	headSize  = 18
	tailSize  = 2
	cutBit    = 1 << 15
	maxRecord = headSize + protocol.MaxLine + tailSize
)

func newRing(size int) ring {
	each := min(maxChunk, max(size/2, maxRecord))
	return ring{size: each, limit: max(size/each, 2)}
}

// add keeps one line of at most protocol.MaxLine bytes.
func (r *ring) add(seq uint64, at int64, text []byte, cut bool) {
	size := headSize + len(text) + tailSize
	c := r.room(size)
	n := uint16(len(text))
	if cut {
		n |= cutBit
	}
	c.data = binary.LittleEndian.AppendUint64(c.data, seq)
	c.data = binary.LittleEndian.AppendUint64(c.data, uint64(at))
	c.data = binary.LittleEndian.AppendUint16(c.data, n)
	c.data = append(c.data, text...)
	c.data = binary.LittleEndian.AppendUint16(c.data, uint16(size))
	r.lines++
}

// room is the newest chunk, with place for size bytes.
func (r *ring) room(size int) *chunk {
	if n := len(r.chunks); n > 0 && len(r.chunks[n-1].data)+size <= r.size {
		return r.chunks[n-1]
	}
	var c *chunk
	if len(r.chunks) < r.limit {
		c = &chunk{data: make([]byte, 0, r.size)}
	} else {
		c = r.chunks[0]
		c.data = c.data[:0]
		r.chunks = slices.Delete(r.chunks, 0, 1)
		r.first++
	}
	c.base = r.lines
	r.chunks = append(r.chunks, c)
	return c
}

// end is behind the newest line.
func (r *ring) end() pos {
	if len(r.chunks) == 0 {
		return pos{}
	}
	last := len(r.chunks) - 1
	return pos{chunk: r.first + uint64(last), off: len(r.chunks[last].data), index: r.lines}
}

// settle is p, or what has become of it, in the chunk that holds the line behind
// it. It reports how many lines between were dropped, and whether there is a line.
func (r *ring) settle(p pos) (_ pos, missed uint64, ok bool) {
	if len(r.chunks) == 0 {
		return p, 0, false
	}
	if p.chunk < r.first {
		oldest := pos{chunk: r.first, index: r.chunks[0].base}
		return oldest, oldest.index - p.index, true
	}
	if p.index == r.lines {
		return p, 0, false
	}
	if p.off == len(r.chunks[p.chunk-r.first].data) {
		p = pos{chunk: p.chunk + 1, index: p.index}
	}
	return p, 0, true
}

// record is one line as it lies in a chunk.
type record struct {
	seq  uint64
	at   int64
	text []byte // of the chunk: to be copied while the lock is held
	cut  bool
}

// read is the line behind p, which settle returned, and the place behind that.
func (r *ring) read(p pos) (record, pos) {
	data := r.chunks[p.chunk-r.first].data[p.off:]
	n := binary.LittleEndian.Uint16(data[16:])
	length := int(n &^ cutBit)
	rec := record{
		seq: r.seq(p), at: int64(binary.LittleEndian.Uint64(data[8:])),
		text: data[headSize : headSize+length], cut: n&cutBit != 0,
	}
	return rec, pos{chunk: p.chunk, off: p.off + headSize + length + tailSize, index: p.index + 1}
}

// seq is the number of the line behind p, which settle or before returned.
func (r *ring) seq(p pos) uint64 {
	return binary.LittleEndian.Uint64(r.chunks[p.chunk-r.first].data[p.off:])
}

// before is the place one line before p and how many bytes of text are between;
// false when that line was dropped.
func (r *ring) before(p pos) (_ pos, length int, ok bool) {
	if len(r.chunks) == 0 || p.chunk < r.first || p.chunk == r.first && p.off == 0 {
		return p, 0, false
	}
	if p.off == 0 {
		p.chunk--
		p.off = len(r.chunks[p.chunk-r.first].data)
	}
	data := r.chunks[p.chunk-r.first].data[:p.off]
	size := int(binary.LittleEndian.Uint16(data[len(data)-tailSize:]))
	return pos{chunk: p.chunk, off: p.off - size, index: p.index - 1}, size - headSize - tailSize, true
}

// stamp turns a line's time into what a ring keeps, and back.
func stamp(t time.Time) int64    { return t.UnixNano() }
func unstamp(at int64) time.Time { return time.Unix(0, at) }
