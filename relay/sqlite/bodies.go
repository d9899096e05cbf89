package sqlite

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// largeBody is the size from which on a body gets a file of its own: what goes
// through the write-ahead log is written twice, and everybody in the batch waits.
const largeBody = 256 << 10

// sweepAge is how old a file without a row must be before it is taken for one
// that a crash left.
const sweepAge = time.Minute

// How a body is stored. The numbers are in the table event_body.
const (
	codecRaw  = 0 // data is the body
	codecFile = 2 // data is the name of its file
)

// errDamaged says that the stored body is not the one that was received.
var errDamaged = errors.New("the stored body is damaged")

// bodies is the folder of large bodies, one file each. A file is durable before
// the transaction that refers to it and is deleted after the one that forgets it.
// What a crash leaves in between is swept when a store is opened, maybe while
// another process has the database open: both sides look under the write lock, so
// that a file is either missed by the one who would refer to it, who then fails,
// or found in the table by the one who would delete it.
type bodies struct{ dir string }

// sealed is a body ready to be stored.
type sealed struct {
	size  int64
	hash  [sha256.Size]byte
	codec int64
	data  []byte // the body, or the name of its file
}

// seal hashes body and writes a large one to its file. The caller syncs the
// folder when it has sealed all bodies of its call.
func (b *bodies) seal(body []byte) (sealed, error) {
	s := sealed{size: int64(len(body)), hash: sha256.Sum256(body), codec: codecRaw, data: body}
	if s.data == nil {
		s.data = []byte{} // the driver stores nil as NULL
	}
	if len(body) < largeBody {
		return s, nil
	}
	var raw [16]byte
	rand.Read(raw[:]) // never fails (crypto/rand documents it)
	name := hex.EncodeToString(raw[:])
	s.codec, s.data = codecFile, []byte(name)
	if err := os.Mkdir(b.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return s, fmt.Errorf("make the folder of large bodies: %w", err)
	} else if err == nil {
		if err := syncFolder(filepath.Dir(b.dir)); err != nil {
			return s, err
		}
	}
	if err := writeFile(b.path(name), body); err != nil {
		os.Remove(b.path(name))
		return s, fmt.Errorf("write a large body: %w", err)
	}
	return s, nil
}

func (b *bodies) path(name string) string { return filepath.Join(b.dir, name) }

// sync makes the names of new files durable.
func (b *bodies) sync(all []sealed) error {
	for _, s := range all {
		if s.codec == codecFile {
			return syncFolder(b.dir)
		}
	}
	return nil
}

// there reports whether a sealed body's file still is, see bodies.
func (b *bodies) there(s *sealed) error {
	if s.codec != codecFile {
		return nil
	}
	if _, err := os.Lstat(b.path(string(s.data))); err != nil {
		return fmt.Errorf("the body's file went away: %w", err)
	}
	return nil
}

// remove deletes files that no row refers to any more. What cannot be deleted
// now is swept later.
func (b *bodies) remove(names []string) {
	for _, name := range names {
		os.Remove(b.path(name))
	}
}

// sweep deletes the files that no row refers to.
func (b *bodies) sweep(c *conn) error {
	entries, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) || len(entries) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep large bodies: %w", err)
	}
	if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("sweep large bodies: %w", err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < sweepAge || !info.Mode().IsRegular() {
			continue
		}
		known, err := c.number(`SELECT 1 FROM event_body WHERE codec = 2 AND data = ?`, []byte(e.Name()))
		if err != nil {
			c.exec("ROLLBACK")
			return fmt.Errorf("sweep large bodies: %w", err)
		}
		if known == 0 {
			os.Remove(b.path(e.Name()))
		}
	}
	_, err = c.exec("ROLLBACK")
	return err
}

// storedBody is a body as the database has it.
type storedBody struct {
	size  int64
	hash  []byte
	gone  bool  // retention deleted it
	codec int64 // -1: there is no row
	data  []byte
}

// bodyColumns are what scanBody reads, from "event e" and "event_body b".
const bodyColumns = `e.body_len, e.body_sha256, e.body_gone, coalesce(b.codec, -1), b.data`

func scanBody(r *row) storedBody {
	return storedBody{size: r.int(), hash: r.bytes(), gone: r.int() != 0, codec: r.int(), data: r.bytes()}
}

// open returns the body after checking that it is the one that was received.
func (b *bodies) open(s *storedBody) ([]byte, error) {
	if s.gone {
		return nil, nil
	}
	data := s.data
	switch s.codec {
	case codecRaw:
	case -1:
		data = nil
	case codecFile:
		var err error
		if data, err = b.readFile(string(s.data), s.size); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the body is stored in form %d, which this version cannot read", s.codec)
	}
	if hash := sha256.Sum256(data); int64(len(data)) != s.size || !bytes.Equal(hash[:], s.hash) || s.codec == -1 {
		return nil, errDamaged
	}
	return data, nil
}

// readFile reads a file of size bytes. One that is missing or has another size
// is damage; one that cannot be read now is another error.
func (b *bodies) readFile(name string, size int64) ([]byte, error) {
	f, err := os.Open(b.path(filepath.Base(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("read a large body: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read a large body: %w", err)
	}
	if info.Size() != size {
		return nil, errDamaged
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("read a large body: %w", err)
	}
	return data, nil
}

// writeFile makes a file that only its owner can read, durably but for its name.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync a folder: %w", err)
	}
	err = f.Sync()
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("sync a folder: %w", err)
	}
	return nil
}
