package logs

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/posternhq/postern/protocol"
)

// hidden stands where a secret was. The relay uses the same word.
const hidden = "[hidden]"

// A masker finds secrets in a line. It looks for a few hundred texts at once: the
// secrets themselves in all their spellings, and what stands in front of a secret
// in the shapes that are known ("password", "sk_live_").
//
// It asks a table about the three bytes at every second place of the line. A text
// of four bytes or more has three of its first four at one of them, and nearly
// every place of a usual line is in no text's. Whatever the number of secrets, this
// is a load and a multiplication for every two bytes.
type masker struct {
	maybe [tableSize / 32]uint32 // a bit for each hash of three bytes: is there a link?
	first [tableSize]uint16      // by hash: a chain in links, 0 is none
	links []link
	words []word
}

// link says that a word has the three bytes at off.
type link struct{ word, next, off uint16 }

// word is a text to look for.
type word struct {
	text string
	fold bool // letters of either case
	wild bool // the first byte may be any
	// shape says what is the secret where the text was found, false when nothing
	// is. nil: the text is.
	shape shape
	wide  bool // the bytes beside it, if of base64, have some bits of it too
}

const (
	tableBits = 16
	tableSize = 1 << tableBits
	shortest  = 4 // bytes of a word
	maxWords  = 1 << 14

	// minPrefix is how much of a secret at the end of an open text is taken for its
	// beginning.
	minPrefix = 4
	// maxWork is how many bytes of one line are compared and measured at most. Only a
	// line made for the purpose needs more, and is hidden from there on.
	maxWork = 256 << 10
)

// folding makes letters of either case the same, and some other bytes too.
const folding = 0x2020202020202020

// hash is of the low three bytes of x, folded. The factor is that of Fibonacci
// hashing.
func hash(x uint32) uint32 { return (x << 8) * 0x9E3779B1 >> (32 - tableBits) }

// hash3 is hash for the three bytes at the beginning of text.
func hash3(text []byte) uint32 {
	_ = text[2]
	return hash(uint32(text[0]) | uint32(text[1])<<8 | uint32(text[2])<<16 | folding&0xFFFFFF)
}

func newMasker(secrets []string) *masker {
	m := &masker{links: make([]link, 1), words: make([]word, 1)}
	seen := map[string]bool{}
	for _, w := range append(shapes(), spellings(secrets)...) {
		if len(w.text) >= shortest && len(m.words) < maxWords && !(w.shape == nil && seen[w.text]) {
			seen[w.text] = seen[w.text] || w.shape == nil
			m.add(w)
		}
	}
	return m
}

func (m *masker) add(w word) {
	m.words = append(m.words, w)
	head := []byte(w.text[:shortest])
	m.link(head[1:], 1)
	if !w.wild {
		m.link(head, 0)
		return
	}
	for b := range 256 {
		if b|0x20 == b {
			head[0] = byte(b)
			m.link(head, 0)
		}
	}
}

// link adds the newest word to the chain of three of its bytes.
func (m *masker) link(three []byte, off uint16) {
	h := hash3(three)
	m.maybe[h/32] |= 1 << (h % 32)
	m.links = append(m.links, link{word: uint16(len(m.words) - 1), next: m.first[h], off: off})
	m.first[h] = uint16(len(m.links) - 1)
}

// span is a part of a line that is not to be seen.
type span struct{ from, to int }

// workspace is what find works with and leaves, for one line after the other.
type workspace struct {
	spans []span
	begun int // from where on a secret may have begun that goes on; -1: nowhere
	out   []byte

	// Of the line that find is at.
	open  bool
	block *block
	begin int // where the block ended
	left  int // of maxWork
}

// find looks for the secrets in text and leaves them in w, in order and apart. With
// open, text goes on and it is not known how. b is the state between lines.
func (m *masker) find(w *workspace, text []byte, open bool, b *block) {
	w.spans, w.begun = w.spans[:0], -1
	w.open, w.block, w.left = open, b, maxWork
	w.begin = b.enter(w, text)
	i := w.begin
	for ; i+8 <= len(text); i += 6 {
		x := binary.LittleEndian.Uint64(text[i:]) | folding
		a, b, c := hash(uint32(x)), hash(uint32(x>>16)), hash(uint32(x>>32))
		if m.maybe[a/32]>>(a%32)&1|m.maybe[b/32]>>(b%32)&1|m.maybe[c/32]>>(c%32)&1 == 0 {
			continue
		}
		for n, h := range [...]uint32{a, b, c} {
			m.tryAll(w, h, text, i+2*n)
		}
	}
	for ; i+3 <= len(text); i += 2 {
		m.tryAll(w, hash3(text[i:]), text, i)
	}
	if open {
		m.findBegun(w, text)
	}
	w.merge()
}

// tryAll looks at all words that may have the three bytes at i, which hash to h.
func (m *masker) tryAll(w *workspace, h uint32, text []byte, i int) {
	for l := m.first[h]; l != 0; l = m.links[l].next {
		from := i - int(m.links[l].off)
		if from < w.begin || w.left < 0 {
			continue
		}
		m.try(w, &m.words[m.links[l].word], text, from)
		if w.left < 0 {
			w.add(from, len(text))
		}
	}
}

// try looks whether word stands in text at from, and adds what is secret.
func (m *masker) try(w *workspace, word *word, text []byte, from int) {
	if !word.at(text[from:]) {
		return
	}
	to := from + len(word.text)
	w.left -= len(word.text)
	if word.shape == nil {
		if word.wide {
			from, to = widen(text, from, to)
		}
		w.add(from, to)
		return
	}
	s, ok := word.shape(look{text: text, from: from, to: to, workspace: w})
	if !ok || s.from >= s.to {
		return
	}
	w.add(s.from, s.to)
	if w.open && s.to == len(text) && (w.begun < 0 || s.from < w.begun) {
		w.begun = s.from
	}
}

// at reports whether text begins with the word.
func (word *word) at(text []byte) bool {
	if len(text) < len(word.text) {
		return false
	}
	switch {
	case word.fold:
		return foldEqual(text[:len(word.text)], word.text)
	case word.wild:
		return string(text[1:len(word.text)]) == word.text[1:]
	}
	return string(text[:len(word.text)]) == word.text
}

// foldEqual compares with a lower-case text.
func foldEqual(text []byte, lower string) bool {
	for i := range len(lower) {
		c := text[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// findBegun looks at the end of text for the beginning of a secret whose rest has
// not come, or was cut off.
func (m *masker) findBegun(w *workspace, text []byte) {
	for i := max(w.begin, len(text)-maxSecret); i+minPrefix <= len(text); i++ {
		rest := text[i:]
		for l := m.first[hash3(rest)]; l != 0; l = m.links[l].next {
			word := &m.words[m.links[l].word]
			if word.shape != nil || m.links[l].off != 0 || len(word.text) <= len(rest) || word.text[:len(rest)] != string(rest) {
				continue
			}
			w.add(i, len(text))
			if w.begun < 0 || i < w.begun {
				w.begun = i
			}
			return
		}
	}
}

// sure is how much of a text of n bytes, which find has looked at as an open one,
// can be told without telling of a secret that goes on.
func (w *workspace) sure(n int) int {
	if w.begun < 0 {
		return n
	}
	for _, s := range w.spans {
		if s.from <= w.begun && w.begun < s.to {
			return s.from
		}
	}
	return w.begun
}

func (w *workspace) add(from, to int) { w.spans = append(w.spans, span{from, to}) }

// merge puts the spans in order and makes one of those that touch.
func (w *workspace) merge() {
	if len(w.spans) < 2 {
		return
	}
	slices.SortFunc(w.spans, func(a, b span) int { return a.from - b.from })
	n := 0
	for _, s := range w.spans[1:] {
		if s.from <= w.spans[n].to {
			w.spans[n].to = max(w.spans[n].to, s.to)
			continue
		}
		n++
		w.spans[n] = s
	}
	w.spans = w.spans[:n+1]
}

// masked is text from given on, at most protocol.MaxLine bytes, without what find
// has found. It is valid until the next call, or as long as text is.
func (w *workspace) masked(text []byte, given int) (_ []byte, cut bool) {
	spans := w.spans
	for len(spans) > 0 && spans[0].to <= given {
		spans = spans[1:]
	}
	seen := text[:min(len(text), max(given, protocol.MaxLine))] // beyond is only looked at
	cut = len(seen) < len(text)
	if len(spans) == 0 {
		return seen[given:], cut
	}
	w.out = w.out[:0]
	for _, s := range spans {
		if s.from >= len(seen) {
			break
		}
		w.out = append(w.out, seen[given:max(given, s.from)]...)
		w.out = append(w.out, hidden...)
		given = min(s.to, len(seen))
	}
	w.out = append(w.out, seen[given:]...)
	if len(w.out) > protocol.MaxLine {
		return w.out[:protocol.MaxLine], true
	}
	return w.out, cut
}

// widen takes in the bytes beside a piece of base64: they hold bits of it too.
func widen(text []byte, from, to int) (int, int) {
	if from > 0 && base64Byte(text[from-1]) {
		from--
	}
	if to < len(text) && base64Byte(text[to]) {
		to++
	}
	return from, to
}

func base64Byte(c byte) bool {
	return alnum(c) || bytes.IndexByte([]byte("+/-_"), c) >= 0
}

func alnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
