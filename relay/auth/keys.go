package auth

import (
	"cmp"
	"crypto/ed25519"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/relay"
)

// rereadAfter is how old the last reading of the folder may be. A folder whose
// modification time has changed is read at once; this bound is for file systems
// that tell that time late or coarsely.
const rereadAfter = time.Second

// Keyring is the relay's Ed25519 keys, one PEM file each in a folder. The
// newest by creation signs; all of them verify, until their files are removed.
//
// The folder may change under a running Keyring, because `keys rotate` and
// `token create` are other processes. Every use looks at the folder's
// modification time, and reads the files again when that changed or when the
// last reading is a second old. When a reading fails, the keys of the last good
// one stay in use.
//
// A Keyring is safe for concurrent use.
type Keyring struct {
	dir string
	now func() time.Time

	// current is the last reading. It is replaced whole and never changed.
	current atomic.Pointer[keySet]
	// reading is held by the one goroutine that reads or writes the folder. It
	// is the one lock here that spans I/O: a few small local files, at most
	// once a second, and others waiting for it want exactly what is read.
	reading sync.Mutex
}

// Key names one key. CreatedAt is zero for a key file that does not say.
type Key struct {
	ID        string
	CreatedAt time.Time
}

// key is one key with its private half.
type key struct {
	Key
	private ed25519.PrivateKey
}

// keySet is one reading of the folder.
type keySet struct {
	keys    []key     // newest first
	readAt  time.Time // when the files were read
	changed time.Time // the folder's modification time just before that
	err     error     // why the latest reading failed; keys are then older
}

func (s *keySet) find(id string) (key, bool) {
	i := slices.IndexFunc(s.keys, func(k key) bool { return k.ID == id })
	if i < 0 {
		return key{}, false
	}
	return s.keys[i], true
}

// OpenKeyring reads the keys in dir. A missing folder is made (0700), and an
// empty one gets its first key; when several processes do that at once, all of
// them end up with the same key. A folder that others may write, or a key file
// that others may read, is an error that says how to repair it.
func OpenKeyring(dir string) (*Keyring, error) { return openKeyring(dir, time.Now) }

func openKeyring(dir string, now func() time.Time) (*Keyring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	if err := checkFolder(dir); err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	if err := createFirst(dir, now()); err != nil {
		return nil, fmt.Errorf("make the first key: %w", err)
	}
	k := &Keyring{dir: dir, now: now}
	k.current.Store(&keySet{})
	k.reading.Lock()
	defer k.reading.Unlock()
	if set := k.readLocked(); set.err != nil {
		return nil, fmt.Errorf("open keys: %w", set.err)
	}
	return k, nil
}

// Rotate makes a new key, which signs from now on, and returns its id. The
// others go on verifying: remove their files once the last token they signed
// has expired, or at once when a key has leaked.
func (k *Keyring) Rotate(now time.Time) (string, error) {
	k.reading.Lock()
	defer k.reading.Unlock()
	set := k.readLocked()
	if set.err != nil {
		return "", fmt.Errorf("rotate keys: %w", set.err)
	}
	// A clock that was set back must not leave the old key signing.
	created := now.UTC().Truncate(time.Millisecond)
	if len(set.keys) > 0 && !created.After(set.keys[0].CreatedAt) {
		created = set.keys[0].CreatedAt.Add(time.Millisecond)
	}
	id, err := createKey(k.dir, created)
	if err != nil {
		return "", fmt.Errorf("rotate keys: %w", err)
	}
	if set := k.readLocked(); set.err != nil {
		return "", fmt.Errorf("rotate keys: %w", set.err)
	}
	return id, nil
}

// Public returns the key that verifies what id signed. An unknown id is
// NotFound; any other error means that the folder cannot be read now, so that
// nobody can say whether the id is known.
func (k *Keyring) Public(id string) (ed25519.PublicKey, error) {
	set := k.fresh()
	if found, ok := set.find(id); ok {
		return found.private.Public().(ed25519.PublicKey), nil
	}
	if set.err != nil {
		return nil, fmt.Errorf("find key: %w", set.err)
	}
	return nil, relay.Errorf(relay.NotFound, "no such key")
}

// Keys lists the keys, newest first: the first one signs.
func (k *Keyring) Keys() []Key {
	set := k.fresh()
	keys := make([]Key, len(set.keys))
	for i := range set.keys {
		keys[i] = set.keys[i].Key
	}
	return keys
}

// signing is the newest key.
func (k *Keyring) signing() (key, error) {
	set := k.fresh()
	if len(set.keys) == 0 {
		return key{}, fmt.Errorf("no key in %s; make one with postern-relay keys rotate", k.dir)
	}
	return set.keys[0], nil
}

// fresh is the current reading, renewed first when it is due.
func (k *Keyring) fresh() *keySet {
	if set := k.current.Load(); !k.due(set) {
		return set
	}
	k.reading.Lock()
	defer k.reading.Unlock()
	if set := k.current.Load(); !k.due(set) { // another goroutine just did it
		return set
	}
	return k.readLocked()
}

// due reports whether the folder must be read again.
func (k *Keyring) due(set *keySet) bool {
	// A negative age is a clock set back: the reading's age is unknown.
	if age := k.now().Sub(set.readAt); age < 0 || age >= rereadAfter {
		return true
	}
	info, err := os.Stat(k.dir)
	return err == nil && !info.ModTime().Equal(set.changed)
}

// readLocked reads the folder and makes the result current. A failure keeps the
// keys of the last good reading and is remembered beside them.
func (k *Keyring) readLocked() *keySet {
	next := &keySet{readAt: k.now()}
	if info, err := os.Stat(k.dir); err == nil {
		next.changed = info.ModTime() // before the files: a change meanwhile is due again
	}
	keys, err := readFolder(k.dir)
	if err != nil {
		next.keys, next.err = k.current.Load().keys, err
	} else {
		slices.SortFunc(keys, func(a, b key) int {
			return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID))
		})
		next.keys = keys
	}
	k.current.Store(next)
	return next
}
