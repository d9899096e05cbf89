package selftest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Journal is a file that outlives the processes which write it: what an app saw
// before it was killed. Several processes may write one at the same time.
//
// A line is handed to the kernel in one call before the app answers; a killed
// process loses none of those. It may leave half of a last line, for a request
// that it has not answered.
type Journal struct {
	mu   sync.Mutex
	file *os.File
}

// OpenJournal opens a file for writing at its end.
func OpenJournal(path string) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &Journal{file: f}, nil
}

// Write writes one line down.
func (j *Journal) Write(d Delivery) error {
	line, err := json.Marshal(d)
	if err != nil {
		return err
	}
	// The line break in front parts it from half a line of a killed process.
	line = append(append([]byte{'\n'}, line...), '\n')
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err = j.file.Write(line)
	return err
}

// Close closes the file.
func (j *Journal) Close() error { return j.file.Close() }

// Reader follows a journal. It is not safe for concurrent use.
type Reader struct {
	path   string
	offset int64
}

// NewReader reads the journal at path from its beginning; the file need not be
// there yet.
func NewReader(path string) *Reader { return &Reader{path: path} }

// Read gives each whole line to observe that was written since the last call.
func (r *Reader) Read(observe func(Delivery)) error {
	f, err := os.Open(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	written, err := io.ReadAll(io.NewSectionReader(f, r.offset, 1<<62))
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	end := bytes.LastIndexByte(written, '\n') + 1
	r.offset += int64(end)
	for line := range bytes.Lines(written[:end]) {
		var d Delivery
		if json.Unmarshal(line, &d) == nil { // half a line tells of nothing that was answered
			observe(d)
		}
	}
	return nil
}
