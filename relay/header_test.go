package relay

import (
	"net/http"
	"slices"
	"testing"
)

func TestOnlyTheConnectionsOwnLinesAreRemoved(t *testing.T) {
	t.Parallel()
	h := http.Header{
		"Connection": {"close, X-Hop", " x-other "}, "X-Hop": {"1"}, "X-Other": {"1"}, "Te": {"trailers"},
		"Http2-Settings": {"x"}, "Upgrade": {"h2c"}, "Content-Type": {"text/plain"}, "X-Twice": {"b", "a"},
	}
	RemoveHopByHop(h)
	want := []Field{{"Content-Type", "text/plain"}, {"X-Twice", "b"}, {"X-Twice", "a"}}
	if got := FieldsOf(h); !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	if !HopByHop("kEEP-Alive") || HopByHop("Content-Length") {
		t.Error("the wrong names belong to a connection")
	}
}
