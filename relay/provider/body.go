package provider

import (
	"bytes"
	"encoding/json"
)

// maxBodyScan bounds how much of a body is searched for an id and a type.
const maxBodyScan = 1 << 20

// topLevelStrings finds string members of the JSON object in body by their
// exact names. It stops as soon as it has all of them, and quietly at the first
// thing that is not JSON: what it did not find is just not in the result.
func topLevelStrings(body []byte, names ...string) map[string]string {
	found := make(map[string]string, len(names))
	dec := json.NewDecoder(bytes.NewReader(body[:min(len(body), maxBodyScan)]))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return found
	}
	for len(found) < len(names) && dec.More() {
		key, err := dec.Token()
		if err != nil {
			return found
		}
		value := textOnly{}
		if err := dec.Decode(&value); err != nil {
			return found
		}
		for _, name := range names {
			if _, known := found[name]; key == name && !known && value.isText {
				found[name] = value.text
			}
		}
	}
	return found
}

// textOnly decodes a JSON string and passes over every other value without
// building it.
type textOnly struct {
	text   string
	isText bool
}

func (v *textOnly) UnmarshalJSON(raw []byte) error {
	if len(raw) == 0 || raw[0] != '"' {
		return nil
	}
	v.isText = true
	return json.Unmarshal(raw, &v.text)
}
