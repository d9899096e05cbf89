package ingress

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"

	"github.com/posternhq/postern/relay"
)

// checkAccess applies the app's trusted ranges and password.
func (s *Server) checkAccess(r *http.Request, c *call) error {
	in := c.app.Ingress
	if len(in.AllowIPs) > 0 {
		allowed := false
		for _, p := range in.AllowIPs {
			allowed = allowed || p.Contains(c.remote)
		}
		if !allowed {
			return relay.Errorf(relay.Forbidden, "your address %s is not among those that may reach this app", c.remote)
		}
	}
	if in.Basic == nil {
		return nil
	}
	user, password, ok := r.BasicAuth()
	if !ok || !equal(user, in.Basic.User) || !equal(password, in.Basic.Password.Reveal()) {
		return relay.Errorf(relay.Unauthorized, "this app asks for a user and a password")
	}
	r.Header.Del("Authorization") // it was for us
	return nil
}

// equal compares in a time that tells nothing, not even the length.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

func refuseAccess(w http.ResponseWriter, c *call, err error) {
	if relay.CodeOf(err) == relay.Unauthorized {
		w.Header().Set("WWW-Authenticate", `Basic realm="`+string(c.app.ID)+`", charset="UTF-8"`)
	}
	relay.WriteError(w, c.id, err)
}
