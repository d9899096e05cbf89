package relay

import (
	"bytes"
	"net/url"
	"strings"
)

// formHeader reports whether the header says that the body is a form.
func formHeader(header []Field) bool {
	for _, f := range header {
		if strings.EqualFold(f.Name, "Content-Type") && strings.Contains(strings.ToLower(f.Value), "form-urlencoded") {
			return true
		}
	}
	return false
}

// payloadFields finds the values, still escaped, of the fields payload in a
// form. GitHub and Slack put JSON there. Only says that there is no other field.
func payloadFields(body []byte) (values []byteRange, only bool) {
	only = true
	for start := 0; start < len(body); {
		end := len(body)
		if i := bytes.IndexByte(body[start:], '&'); i >= 0 {
			end = start + i
		}
		key, _, _ := bytes.Cut(body[start:end], []byte("="))
		if name, err := url.QueryUnescape(string(key)); err == nil && name == "payload" {
			values = append(values, byteRange{min(start+len(key)+1, end), end})
		} else {
			only = only && end == start
		}
		start = end + 1
	}
	return values, only
}
