package admin

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// The HTTP Archive format 1.2, as far as one request needs it. All fields that
// the format requires are there; what is not known is -1 or empty, as it says.
type (
	harFile struct {
		Log harLog `json:"log"`
	}
	harLog struct {
		Version string     `json:"version"`
		Creator harCreator `json:"creator"`
		Entries []harEntry `json:"entries"`
	}
	harCreator struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	harEntry struct {
		StartedDateTime string      `json:"startedDateTime"`
		Time            float64     `json:"time"` // milliseconds
		Request         harRequest  `json:"request"`
		Response        harResponse `json:"response"`
		Cache           struct{}    `json:"cache"`
		Timings         harTimings  `json:"timings"`
		Comment         string      `json:"comment,omitempty"`
	}
	harRequest struct {
		Method      string       `json:"method"`
		URL         string       `json:"url"`
		HTTPVersion string       `json:"httpVersion"`
		Cookies     []harPair    `json:"cookies"`
		Headers     []harPair    `json:"headers"`
		QueryString []harPair    `json:"queryString"`
		PostData    *harPostData `json:"postData,omitempty"`
		HeadersSize int          `json:"headersSize"`
		BodySize    int          `json:"bodySize"`
	}
	harPair struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	// harPostData has no form for bytes that are no text; fields that begin with
	// _ are ours to define.
	harPostData struct {
		MimeType string `json:"mimeType"`
		Text     string `json:"text"`
		Encoding string `json:"_encoding,omitempty"`
		Comment  string `json:"comment,omitempty"`
	}
	harResponse struct {
		Status      int        `json:"status"`
		StatusText  string     `json:"statusText"`
		HTTPVersion string     `json:"httpVersion"`
		Cookies     []harPair  `json:"cookies"`
		Headers     []harPair  `json:"headers"`
		Content     harContent `json:"content"`
		RedirectURL string     `json:"redirectURL"`
		HeadersSize int        `json:"headersSize"`
		BodySize    int        `json:"bodySize"`
	}
	harContent struct {
		Size     int    `json:"size"`
		MimeType string `json:"mimeType"`
		Text     string `json:"text,omitempty"`
		Encoding string `json:"encoding,omitempty"`
	}
	harTimings struct {
		Send    float64 `json:"send"`
		Wait    float64 `json:"wait"`
		Receive float64 `json:"receive"`
	}
)

// har is the webhook, with the app's answer to the last attempt if there is one.
func (x *exported) har(last *relay.Attempt) []byte {
	entry := harEntry{
		StartedDateTime: x.ReceivedAt.UTC().Format(time.RFC3339Nano),
		Request: harRequest{
			Method: x.Method, URL: plain(x.url), HTTPVersion: "HTTP/1.1", Cookies: []harPair{},
			Headers: harFields(x.header), QueryString: queryPairs(x.url), PostData: x.postData(),
			HeadersSize: -1, BodySize: len(x.Body),
		},
		Response: harResponse{
			HTTPVersion: "HTTP/1.1", Cookies: []harPair{}, Headers: []harPair{}, HeadersSize: -1, BodySize: -1,
		},
		Comment: "event " + string(x.ID) + " of " + string(x.App) + "/" + x.Endpoint,
	}
	if last != nil {
		entry.Time = max(0, float64(last.EndedAt.Sub(last.StartedAt).Milliseconds()))
		entry.Timings.Wait = entry.Time
		entry.Response.Status, entry.Response.StatusText = last.Status, http.StatusText(last.Status)
		entry.Response.Headers = harFields(last.Header)
		entry.Response.Content = harBody(last.Body, mediaType(last.Header))
		entry.Response.RedirectURL = headerOf(last.Header, "Location")
	}
	data, err := json.MarshalIndent(harFile{harLog{
		Version: "1.2", Creator: harCreator{Name: "postern", Version: "1"}, Entries: []harEntry{entry},
	}}, "", "  ")
	if err != nil {
		panic(err) // types of ours that JSON does not know
	}
	return append(data, '\n')
}

func (x *exported) postData() *harPostData {
	if len(x.Body) == 0 {
		return nil
	}
	data := &harPostData{MimeType: mediaType(x.header), Text: string(x.Body)}
	if !utf8.Valid(x.Body) {
		data.Text, data.Encoding = base64.StdEncoding.EncodeToString(x.Body), "base64"
		data.Comment = "text is the body in base64"
	}
	return data
}

func harBody(body []byte, mimeType string) harContent {
	c := harContent{Size: len(body), MimeType: mimeType, Text: string(body)}
	if !utf8.Valid(body) {
		c.Text, c.Encoding = base64.StdEncoding.EncodeToString(body), "base64"
	}
	return c
}

func harFields(fields []relay.Field) []harPair {
	pairs := make([]harPair, len(fields))
	for i, f := range fields {
		pairs[i] = harPair{plain(f.Name), plain(f.Value)}
	}
	return pairs
}

// queryPairs keeps order and repeats, which url.Values does not.
func queryPairs(address string) []harPair {
	pairs := []harPair{}
	_, query, _ := strings.Cut(address, "?")
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		pairs = append(pairs, harPair{plain(unescaped(name)), plain(unescaped(value))})
	}
	return pairs
}

func unescaped(s string) string {
	if text, err := url.QueryUnescape(s); err == nil {
		return text
	}
	return s
}

func mediaType(fields []relay.Field) string {
	if value := headerOf(fields, "Content-Type"); value != "" {
		return plain(value)
	}
	return "application/octet-stream"
}

func headerOf(fields []relay.Field, name string) string {
	for _, f := range fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}
