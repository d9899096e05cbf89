package relay

import (
	"strings"
	"testing"
)

func TestSecretsAreMaskedWhereverTheSenderPutThem(t *testing.T) {
	t.Parallel()
	ep := Endpoint{Secrets: []Secret{"first-token", "second-token", "short"}, VerifyToken: "verify-token"}
	body, header := []byte(`{"clientState":"second-token","short":1}`), []Field{{"X-Gitlab-Token", "first-token"}, {"A", "b"}}
	e := Event{Header: header, Body: body, Target: "?token=verify-token", PublicURL: "https://x/?token=verify-token"}
	if !ep.MaskSecrets(&e) {
		t.Error("nothing was masked")
	}
	if e.Header[0].Value != Hidden || e.Header[1].Value != "b" || e.Target != "?token="+Hidden || e.PublicURL != "https://x/?token="+Hidden {
		t.Errorf("event %+v", e)
	}
	if got := string(e.Body); got != `{"clientState":"[hidden]","short":1}` {
		t.Errorf("body %s", got)
	}
	if header[0].Value != "first-token" || !strings.Contains(string(body), "second-token") {
		t.Error("the stored event was changed")
	}
	if (&Endpoint{}).MaskSecrets(&e) {
		t.Error("without secrets something was masked")
	}
}
