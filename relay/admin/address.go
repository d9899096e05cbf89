package admin

import "strings"

// appTarget is the path and query under which an app gets a webhook. Neither part
// is decoded, because some senders sign the address.
func appTarget(path, target string) string {
	if strings.HasSuffix(path, "/") && strings.HasPrefix(target, "/") {
		target = target[1:]
	}
	if path+target == "" || strings.HasPrefix(path+target, "?") {
		return "/" + path + target
	}
	return path + target
}

// addressAt is where a webhook goes that is sent to base instead: below base's
// own path if it has one, else at the path that the endpoint has on its app.
func (v *seen) addressAt(base string) string {
	scheme, rest, _ := strings.Cut(base, "://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	origin, path := scheme+"://"+rest[:end], rest[end:]
	path, query, _ := strings.Cut(path, "?")
	if path == "" || path == "/" {
		path = v.endpoint.Path
	}
	target := appTarget(path, v.Target)
	switch {
	case query == "":
	case strings.Contains(target, "?"):
		target += "&" + query
	default:
		target += "?" + query
	}
	return origin + target
}
