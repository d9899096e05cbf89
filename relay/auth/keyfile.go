package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// A key file is <kid>.pem: PKCS #8 in PEM (RFC 7468, RFC 8410), and before it,
// where RFC 7468 section 2 allows explanatory text that every reader skips, the
// line "created: <time>". The time is in the file because copies and backups
// change a file's own times.
const (
	keySuffix     = ".pem"
	pemType       = "PRIVATE KEY"
	createdPrefix = "created: "
	createdLayout = "2006-01-02T15:04:05.000Z07:00"
	maxKeyFile    = 16 << 10 // bytes; ours have some 160
	firstName     = ".first" // see createFirst
	tempPattern   = ".new-*"
)

// plainName reports whether s can be a key id: 1 to 64 of a-z 0-9 - _, not
// beginning with a sign. It can then be no path, no hidden file and no log line
// of its own.
func plainName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '-' || s[0] == '_' {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// keyID is the first half of the key's JWK thumbprint (RFC 7638, members as in
// RFC 8037 appendix A.3). It is in hex, not base64url, because it is also a
// file name and some file systems ignore case.
func keyID(public ed25519.PublicKey) string {
	x := base64.RawURLEncoding.EncodeToString(public)
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + x + `"}`))
	return hex.EncodeToString(sum[:16])
}

// checkFolder refuses a folder in which others can put keys.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 && hasModes() {
		return fmt.Errorf("others may write to the key folder (mode %04o); run: chmod 700 %s", mode, dir)
	}
	return nil
}

// hasModes reports whether file modes mean anything here.
func hasModes() bool { return runtime.GOOS != "windows" }

// keyNames lists the ids of the key files in dir.
func keyNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		id, isKey := strings.CutSuffix(e.Name(), keySuffix)
		if !isKey || strings.HasPrefix(id, ".") {
			continue // ours in the making, a backup, an editor's copy
		}
		if !plainName(id) {
			return nil, fmt.Errorf("%s: a key's name has only a-z, 0-9, - and _; rename or remove it", filepath.Join(dir, e.Name()))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// readFolder reads every key in dir, in no order. One unusable file is an
// error for all: guessing around it could let an old key sign.
func readFolder(dir string) ([]key, error) {
	ids, err := keyNames(dir)
	if err != nil {
		return nil, err
	}
	var keys []key
	for _, id := range ids {
		k, err := readKey(filepath.Join(dir, id+keySuffix))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			return nil, err
		}
		k.ID = id
		keys = append(keys, k)
	}
	return keys, nil
}

// readKey reads one key file. The ID is the caller's to set.
func readKey(path string) (key, error) {
	info, err := os.Stat(path) // before opening: opening a pipe would wait
	if err != nil {
		return key{}, err
	}
	if !info.Mode().IsRegular() {
		return key{}, fmt.Errorf("%s is not a file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && hasModes() {
		return key{}, fmt.Errorf("others may read or write this private key (mode %04o); run: chmod 600 %s", mode, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return key{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return key{}, err
	}
	k, err := parseKey(text)
	if err != nil {
		return key{}, fmt.Errorf("%s: %w; replace it from a backup or remove it", path, err)
	}
	return k, nil
}

// parseKey reads the text of a key file.
func parseKey(text []byte) (key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemType {
		return key{}, fmt.Errorf("no PEM block %q", pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return key{}, errors.New("not a PKCS #8 key") // the parser's text may quote the key
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return key{}, fmt.Errorf("a key of type %T, not Ed25519", parsed)
	}
	k := key{private: private}
	if line, ok := bytes.CutPrefix(text, []byte(createdPrefix)); ok {
		stamp, _, _ := bytes.Cut(line, []byte("\n"))
		if k.CreatedAt, err = time.Parse(createdLayout, string(bytes.TrimSpace(stamp))); err != nil {
			return key{}, errors.New("the created line holds no time")
		}
	}
	return k, nil
}

// newKeyText makes a key and the text of its file.
func newKeyText(created time.Time) (id string, text []byte, err error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", nil, err
	}
	text = []byte(createdPrefix + created.UTC().Format(createdLayout) + "\n")
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})...)
	return keyID(public), text, nil
}

// createKey adds a key to dir. Nobody ever sees half a file, not after a crash
// either: it is written and synced under another name first.
func createKey(dir string, created time.Time) (string, error) {
	id, text, err := newKeyText(created)
	if err != nil {
		return "", err
	}
	temp, err := writeTemp(dir, text)
	if err != nil {
		return "", err
	}
	if err := os.Rename(temp, filepath.Join(dir, id+keySuffix)); err != nil {
		os.Remove(temp)
		return "", err
	}
	return id, syncFolder(dir)
}

// createFirst gives an empty folder its first key.
//
// Several processes may find it empty at once. Each writes a whole key to a
// file of its own and links that to .first, which only one can. Then all of
// them publish whatever .first holds under its id: the maker too, and others
// for it should it have crashed just there. So all take the same key. A file
// system without links gets a key from each instead, which is harmless: all
// verify, and the newest signs.
func createFirst(dir string, now time.Time) error {
	ids, err := keyNames(dir)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		// A .first left by a crash must not come back as a key some day.
		return removeIfThere(filepath.Join(dir, firstName))
	}
	id, text, err := newKeyText(now)
	if err != nil {
		return err
	}
	temp, err := writeTemp(dir, text)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, filepath.Join(dir, firstName)); err != nil && !errors.Is(err, fs.ErrExist) {
		if err := os.Rename(temp, filepath.Join(dir, id+keySuffix)); err != nil {
			return err
		}
		return syncFolder(dir)
	}
	return publishFirst(dir)
}

// publishFirst turns .first into the folder's first key, whoever made it. The
// order matters: .first is read before the folder is listed. A slow process may
// then find a later .first in its place, but by then the first key has the name
// it would link to.
func publishFirst(dir string) error {
	first := filepath.Join(dir, firstName)
	k, err := readKey(first)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another process published it meanwhile
	}
	if err != nil {
		return err
	}
	ids, err := keyNames(dir)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		id := keyID(k.private.Public().(ed25519.PublicKey))
		err := os.Link(first, filepath.Join(dir, id+keySuffix))
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := syncFolder(dir); err != nil {
			return err
		}
	}
	return removeIfThere(first)
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeTemp writes text to a new file in dir (0600) and syncs it.
func writeTemp(dir string, text []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, tempPattern) // O_EXCL, 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// syncFolder makes a rename or link in dir survive a power failure. Where a
// folder cannot be synced at all, there is nothing more to do.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && hasModes() {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
