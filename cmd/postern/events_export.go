package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
)

var exportVerb = eventVerb{
	name: "export", about: "an event as a curl command, a HAR file or a Go test", usage: "[flags] ID",
	examples: `postern events export evt_06fg3v9k2w --as curl --target http://127.0.0.1:3000 | sh
postern events export evt_06fg3v9k2w --as har -o event.har
postern events export evt_06fg3v9k2w --as go -o stripe_event_test.go`,
	notes: "What the endpoint's redaction hides is hidden here too, and no signature holds then.",
	run:   exportEvent,
}

// maxExport is the most that is written: an event of 25 MB, as a format may
// escape it.
const maxExport = 512 << 20

// exportEvent is postern events export.
func exportEvent(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newEventFlags(v)
	as := ""
	f.value("as", "`FORMAT`: curl, har or go", func(v string) error {
		if as = v; !slices.Contains([]string{"curl", "har", "go"}, v) {
			return errors.New("expected curl, har or go")
		}
		return nil
	})
	target := f.str("target", "the `URL` that the request goes to; without a path, the path that the app gets it at; default: the relay's, as it was sent")
	output := f.str("output", "write to `FILE`, and not to standard output")
	f.StringVar(output, "o", "", "")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	id, err := f.one()
	if err != nil {
		return exitUsage, err
	}
	query := url.Values{"as": {as}}
	if as == "" {
		return exitUsage, usagef("as what? --as curl, --as har or --as go")
	}
	if *target != "" {
		if u, err := url.Parse(*target); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return exitUsage, usagef("--target %q: expected http://host/path", *target)
		}
		query.Set("target", *target)
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	ctx, cancelTime := context.WithTimeout(ctx, eventTime)
	defer cancelTime()
	res, err := client.open(ctx, apiRequest{path: []string{"events", id, "export"}, query: query})
	if err != nil {
		return exitFailed, err
	}
	defer res.Body.Close()
	if *output == "" || *output == "-" {
		err = client.copy(ctx, c.out, res.Body)
	} else {
		err = writeFile(*output, func(w io.Writer) error { return client.copy(ctx, w, res.Body) })
	}
	if err != nil {
		return exitFailed, err
	}
	return exitOK, nil
}

// copy writes an answer's body, whole or with an error.
func (c *apiClient) copy(ctx context.Context, to io.Writer, body io.Reader) error {
	_, err := io.CopyN(to, body, maxExport)
	var inPath *os.PathError
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return fmt.Errorf("the export has more than %s", size(maxExport))
	case errors.As(err, &inPath):
		return err
	}
	return c.unreachable(ctx, err)
}

// writeFile makes name with what write writes, or leaves it as it was. Only its
// owner may read it: an event can hold anything.
func writeFile(name string, write func(io.Writer) error) error {
	file, err := os.CreateTemp(filepath.Dir(name), ".postern-export-*")
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	err = write(file)
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), name)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}
