package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
)

// texts are the lines' texts, with a mark where lines were missed or cut.
func texts(lines []protocol.Line) []string {
	var all []string
	for _, line := range lines {
		text := line.Text
		if line.Missed > 0 {
			text = fmt.Sprintf("(%d missed)%s", line.Missed, text)
		}
		if line.Cut {
			text += "(cut)"
		}
		all = append(all, text)
	}
	return all
}

func wantTexts(t *testing.T, lines []protocol.Line, want ...string) {
	t.Helper()
	if got := texts(lines); !slices.Equal(got, want) {
		t.Errorf("lines %q, want %q", got, want)
	}
}

func TestLinesOfAllStreamsAreInTheOrderInWhichTheyCame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{})
		out, err := l.Tee(Stdout, io.Discard), l.Tee(Stderr, io.Discard)
		begin := time.Now()
		fmt.Fprint(out, "one\ntwo\n")
		time.Sleep(time.Minute)
		fmt.Fprint(err, "three\n")
		l.Add(Postern, "four\nfive")
		fmt.Fprint(out, "six\r\n\n")
		lines := l.Tail(10)
		wantTexts(t, lines, "one", "two", "three", "four", "five", "six", "")
		if !lines[0].At.Equal(begin) || !lines[2].At.Equal(begin.Add(time.Minute)) {
			t.Errorf("lines at %v and %v, want %v and a minute later", lines[0].At, lines[2].At, begin)
		}
		if lines[0].Stream != Stdout || lines[2].Stream != Stderr || lines[3].Stream != Postern {
			t.Errorf("streams %s %s %s", lines[0].Stream, lines[2].Stream, lines[3].Stream)
		}
		wantTexts(t, l.Tail(3), "five", "six", "")
		wantTexts(t, l.Tail(0))
		wantTexts(t, l.Tail(-1))
	})
}

func TestOldestLinesOfAStreamAreDropped(t *testing.T) {
	t.Parallel()
	l := New(Config{Size: 64 << 10})
	early := l.Follow(0)
	defer early.Close()
	l.Add(Stderr, "rare")
	const lines = 5000
	for n := range lines {
		l.Add(Stdout, fmt.Sprintf("line %d", n))
	}
	all := l.Tail(lines * 2)
	if all[0].Text != "rare" {
		t.Errorf("begins with %q: a noisy stream has displaced a quiet one", all[0].Text)
	}
	kept := len(all) - 1
	if kept < 1500 || kept >= lines {
		t.Fatalf("%d lines are kept", kept)
	}
	for n, line := range all[1:] {
		if want := fmt.Sprintf("line %d", lines-kept+n); line.Text != want {
			t.Fatalf("line %d is %q, want %q", n, line.Text, want)
		}
	}
	// The one who was there from the beginning is told of all that it has not seen.
	wantTexts(t, early.Next(1), "rare")
	first := early.Next(1)
	wantTexts(t, first, fmt.Sprintf("(%d missed)line %d", lines-kept, lines-kept))
	wantTexts(t, early.Next(1), fmt.Sprintf("line %d", lines-kept+1))
}

func TestFollowerSeesWhatItHasNotSkipped(t *testing.T) {
	t.Parallel()
	l := New(Config{})
	for n := range 10 {
		l.Add(Stdout, fmt.Sprint("old ", n))
	}
	f := l.Follow(2 * (lineCost + len("old 0")))
	defer f.Close()
	wantTexts(t, f.Next(1000), "old 8", "old 9")
	wantTexts(t, f.Next(1000))
	for n := range 1000 {
		l.Add(Stdout, fmt.Sprint("out ", n))
		l.Add(Stderr, fmt.Sprint("err ", n))
	}
	f.Skip(3 * (lineCost + len("out 999")))
	wantTexts(t, f.Next(1), "(998 missed)err 998")
	f.Skip(1 << 20) // all that is left
	wantTexts(t, f.Next(1), "(999 missed)out 999")
	f.Skip(0)
	wantTexts(t, f.Next(1))
	l.Add(Stderr, "last")
	wantTexts(t, f.Next(1), "(1 missed)last")
}

func TestFollowerIsWokenWhenEnoughHasCome(t *testing.T) {
	t.Parallel()
	l := New(Config{})
	l.Add(Stdout, "before")
	f := l.Follow(1000)
	defer f.Close()
	woken := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if !woken(f.Wait(1)) {
		t.Error("not woken for what was there")
	}
	f.Next(1000)
	if woken(f.Wait(1)) {
		t.Error("woken for nothing")
	}
	l.Add(Stdout, "new")
	if !woken(f.Wait(1)) {
		t.Error("not woken by a line")
	}
	wait := f.Wait(1000)
	if woken(wait) {
		t.Error("woken by one line, want a thousand bytes")
	}
	l.Add(Stdout, strings.Repeat("x", 1000))
	if !woken(wait) {
		t.Error("not woken by a thousand bytes")
	}
	f.Skip(0)
	if woken(f.Wait(1)) {
		t.Error("woken for what was skipped")
	}
}

func TestUnfinishedLineIsKeptAfterSilenceOrAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{})
		out := l.Tee(Stdout, io.Discard)
		fmt.Fprint(out, "Continue")
		time.Sleep(silence / 2)
		fmt.Fprint(out, "? ")
		time.Sleep(silence * 3 / 4)
		wantTexts(t, l.Tail(10)) // it has not been silent for long enough
		time.Sleep(silence / 2)
		synctest.Wait()
		wantTexts(t, l.Tail(10), "Continue? ")
		time.Sleep(time.Hour)
		fmt.Fprint(out, "yes\nnext\nno end")
		wantTexts(t, l.Tail(10), "Continue? ", "yes", "next")
		l.Close()
		wantTexts(t, l.Tail(10), "Continue? ", "yes", "next", "no end(cut)")
	})
}

// A password may follow the colon, and is not shown in two halves. When it turns
// out that none did, nothing is missing.
func TestUnfinishedLineIsKeptAsFarAsItIsSure(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Secrets: []string{"hunter2hunter2"}})
		out := l.Tee(Stdout, io.Discard)
		for _, half := range []string{"at http://localhost:3000", "/x\n", "a hunter2hun", "gry\n", "a hunter2hun", "ter2\n"} {
			fmt.Fprint(out, half)
			time.Sleep(2 * silence)
		}
		synctest.Wait()
		wantTexts(t, l.Tail(10), "at http://localhost:", "3000/x", "a ", "hunter2hungry", "a ", "[hidden]")
	})
}

func TestLongLineIsCut(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", protocol.MaxLine)
	for _, test := range []struct {
		name, in string
		want     []string
	}{
		{"as long as may be", long + "\nnext\n", []string{long, "next"}},
		{"one byte more", long + "y\nnext\n", []string{long + "(cut)", "next"}},
		{"much more", strings.Repeat(long, 4) + "\nnext\n", []string{long + "(cut)", "next"}},
		{"much more, twice", strings.Repeat(long, 4) + "\n" + strings.Repeat(long, 2) + "\n", []string{long + "(cut)", long + "(cut)"}},
		{"with what is no UTF-8", strings.Repeat("x\xff", protocol.MaxLine/2) + "\n", []string{strings.Repeat("x\uFFFD", protocol.MaxLine/4) + "(cut)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{1 << 20, 1000, 37} {
				l := New(Config{})
				out := l.Tee(Stdout, io.Discard)
				for piece := range slices.Chunk([]byte(test.in), size) {
					out.Write(piece)
				}
				wantTexts(t, l.Tail(10), test.want...)
			}
		})
	}
}

// order notes what is written and what a Log had kept by then.
type order struct {
	l    *Log
	got  bytes.Buffer
	seen int
	err  error
}

func (o *order) Write(p []byte) (int, error) {
	o.seen = len(o.l.Tail(10))
	if o.err != nil {
		return 0, o.err
	}
	return o.got.Write(p)
}

func TestTeePassesBytesOnUnchangedAndFirst(t *testing.T) {
	t.Parallel()
	l := New(Config{Secrets: []string{"hunter2hunter2"}})
	to := &order{l: l}
	tee := l.Tee(Stdout, to)
	in := "password=hunter2hunter2\x00\xff\r\nno end"
	if n, err := tee.Write([]byte(in)); n != len(in) || err != nil {
		t.Fatalf("Write: %d, %v", n, err)
	}
	if to.got.String() != in {
		t.Errorf("passed on %q, want %q", to.got.String(), in)
	}
	if to.seen != 0 {
		t.Error("the lines were kept before they were passed on")
	}
}

func TestTeeKeepsLinesWhenTheRealOutputFails(t *testing.T) {
	t.Parallel()
	l := New(Config{})
	tee := l.Tee(Stdout, &order{l: l, err: errors.New("broken pipe")})
	for range 2 {
		if n, err := fmt.Fprintln(tee, "last words"); n != 11 || err != nil {
			t.Errorf("Write: %d, %v: the app would stand still", n, err)
		}
	}
	wantTexts(t, l.Tail(10), "last words", "last words")
}

func TestReadersAndWritersAtOnce(t *testing.T) {
	t.Parallel()
	l := New(Config{Size: 64 << 10})
	const lines = 20000
	var writing, reading sync.WaitGroup
	for _, stream := range names {
		tee := l.Tee(stream, io.Discard)
		writing.Go(func() {
			for n := range lines {
				fmt.Fprintf(tee, "%d\n", n)
			}
		})
	}
	for reader := range 3 {
		f := l.Follow(0)
		reading.Go(func() {
			defer f.Close()
			var next [len(names)]int
			for ended := false; ; {
				got := f.Next(4000)
				for _, line := range got {
					n := number(line.Stream)
					next[n] += line.Missed
					if line.Text != fmt.Sprint(next[n]) {
						t.Errorf("line %q of %s, want %d", line.Text, line.Stream, next[n])
						return
					}
					next[n]++
				}
				switch {
				case len(got) > 0:
					if reader == 0 {
						f.Skip(1000)
					}
				case ended:
					for n, got := range next {
						if got != lines && (reader > 0 || got > lines) { // of lines skipped at the end nothing tells
							t.Errorf("%d lines of %s were seen or missed, want %d", got, names[n], lines)
						}
					}
					return
				default:
					select {
					case <-f.Wait(1):
					case <-l.Done():
						ended = true
					}
				}
			}
		})
	}
	writing.Wait()
	l.Close()
	reading.Wait()
}

// What the agent may take is 20 MB for everything. Not parallel: it counts all
// memory.
func TestMemoryIsBoundedAndTakenAsNeeded(t *testing.T) {
	inUse := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	before := inUse()
	secrets := someSecrets(100)
	l := New(Config{Secrets: secrets})
	tees := []io.Writer{l.Tee(Stdout, io.Discard), l.Tee(Stderr, io.Discard), l.Tee(Postern, io.Discard)}
	for _, tee := range tees {
		fmt.Fprintln(tee, "hello")
	}
	quiet := inUse() - before
	lines := bytes.Repeat([]byte("x\n"), 1000) // short ones cost the most besides their text
	for range 120 {
		for _, tee := range tees {
			tee.Write(lines)
		}
	}
	long := append(bytes.Repeat([]byte("y"), 3*protocol.MaxLine), '\n')
	for range 10 {
		for _, tee := range tees {
			tee.Write(long)
		}
	}
	full := inUse() - before
	runtime.KeepAlive(l)
	t.Logf("quiet %d KiB, all three full %d KiB", quiet>>10, full>>10)
	if quiet > 1<<20 {
		t.Errorf("a quiet app costs %d bytes, want less than 1 MiB", quiet)
	}
	if full > 7<<20 {
		t.Errorf("three full streams cost %d bytes, want less than 7 MiB", full)
	}
	for n := range l.rings {
		if r := &l.rings[n]; len(r.chunks) != r.limit || r.first == 0 {
			t.Errorf("the ring of %s was not full", names[n])
		}
	}
}

func TestKeepingALineAllocatesNothing(t *testing.T) {
	l := New(Config{Size: 256 << 10, Secrets: []string{"hunter2hunter2"}})
	tee := l.Tee(Stdout, io.Discard)
	data := []byte("a line with hunter2hunter2 in it\nand one without\nand half of ")
	for range 10000 { // until the ring has all its chunks
		tee.Write(data)
	}
	if n := testing.AllocsPerRun(1000, func() { tee.Write(data) }); n > 0 {
		t.Errorf("%v allocations for two lines", n)
	}
}
