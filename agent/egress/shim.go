package egress

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
)

// shim has Nodes use the proxy that cannot by themselves. It does nothing in those that
// can.
//
//go:embed shim.cjs
var shim []byte

// node has Node use the proxy: newer ones by NODE_USE_ENV_PROXY, older ones by the shim.
func (e *environment) node() {
	switch value := e.get("NODE_USE_ENV_PROXY"); value {
	case "":
		e.set("NODE_USE_ENV_PROXY", "1")
	case "1":
	default:
		e.note("NODE_USE_ENV_PROXY is set already, to %q: Node's calls go past the proxy", value)
		return
	}
	if e.o.ShimDir == "" {
		return
	}
	file, err := writeShim(e.o.ShimDir)
	if err != nil {
		// A Node that is told to load a file that is not there does not start.
		e.note("the file that old Nodes need for the proxy cannot be written: %v", err)
		return
	}
	e.set("NODE_OPTIONS", strings.TrimSpace(e.get("NODE_OPTIONS")+" --require "+quoteNode(file)))
}

// writeShim puts the shim into dir, under a name that changes with what is in it: a
// Node that runs already may start workers that load an earlier one.
func writeShim(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	sum := sha256.Sum256(shim)
	path, err := filepath.Abs(filepath.Join(dir, "postern-proxy-"+hex.EncodeToString(sum[:4])+".cjs"))
	if err != nil {
		return "", err
	}
	if there, err := os.ReadFile(path); err == nil && string(there) == string(shim) {
		return path, nil
	}
	f, err := os.CreateTemp(dir, "postern-proxy-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // it has its name by then, or is of no use
	_, err = f.Write(shim)
	if err == nil {
		err = f.Chmod(0o644) // the app may run as somebody else
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return "", err
	}
	return path, os.Rename(f.Name(), path)
}

// quoteNode quotes a path as NODE_OPTIONS has it.
func quoteNode(path string) string {
	if !strings.ContainsAny(path, " \"\\") {
		return path
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(path) + `"`
}
